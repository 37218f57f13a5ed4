"""OpenAI's Responses API, through OpenAI's own SDK.

Nothing is stored there: each request has the whole conversation. Passages are sent as delimited text. Reasoning is sent
back with OpenAI's proof or not at all. This API has no stop texts and no seeds; `openai_chat` has them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from agentshell.provider.adapters import failure, part_text, strict_schema
from agentshell.provider.adapters.adapter import Access, Deltas, unsupported
from agentshell.provider.adapters.answer import Answer
from agentshell.provider.adapters.failure import Failure
from agentshell.provider.adapters.openai_api import (
    EFFORTS,
    MODEL,
    OpenAIApi,
    cache,
    image_url,
    member,
    number,
    parameters_of,
)
from agentshell.provider.adapters.streaming import converse
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:
    from aiohttp import ClientResponse

# A prefix of `Reasoning.signature`, so that another vendor's proof is never sent to this one.
_PROOF = b"openai/reasoning/"
_PARAGRAPH = "\n\n"
# There is a lifetime of 12 hours too, which costs more; how much is known for few models.
_CACHE_LIFETIMES = {"30m": timedelta(minutes=30)}
_MODES = {pb.ToolChoice.MODE_NONE: "none", pb.ToolChoice.MODE_REQUIRED: "required"}
_ROLES = {content_pb2.ROLE_SYSTEM: "system", content_pb2.ROLE_ASSISTANT: "assistant"}
_INCOMPLETE: Mapping[str, pb.FinishReason.ValueType] = {
    "max_output_tokens": pb.FINISH_REASON_LENGTH,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}


class OpenAIAdapter:
    """Generates with Responses, counts tokens by the vendor's own count, embeds and moderates."""

    abilities = frozenset(
        {
            pb.ABILITY_TEMPERATURE,
            pb.ABILITY_TOP_P,
            pb.ABILITY_REASONING_EFFORT,
            pb.ABILITY_TOOLS,
            pb.ABILITY_TOOL_CHOICE,
            pb.ABILITY_IMAGES,
            pb.ABILITY_IMAGE_LINKS,
            pb.ABILITY_OUTPUT_SCHEMA,
            pb.ABILITY_PROMPT_CACHE,
            pb.ABILITY_PROMPT_CACHE_KEY,
            pb.ABILITY_PROMPT_CACHE_TTL,
            pb.ABILITY_EMBEDDINGS,
            pb.ABILITY_DIMENSION,
            pb.ABILITY_MODERATION,
            pb.ABILITY_TOKEN_COUNT,
        }
    )

    def __init__(self, access: Access) -> None:
        self.default_model = access.model or MODEL
        self._api = OpenAIApi(access)

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields deltas and the whole answer."""
        return converse(self._api.sdk, partial(self._ask, generation, model), _Growth(self._api.provider, model), model)

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns one vector per text."""
        return await self._api.embed(texts, model, dimension)

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns one verdict per text."""
        return await self._api.moderate(texts, model)

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns OpenAI's own count."""
        return await count_tokens(self._api, generation, model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._api.sdk.close()

    async def _ask(self, generation: pb.Generation, model: str) -> ClientResponse:
        provider = self._api.provider
        body = {"model": model, "store": False, **question(generation, provider), **_parameters(generation, provider)}
        return await self._api.stream("/responses", body)


async def count_tokens(api: OpenAIApi, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
    """Returns OpenAI's own count, which only Responses has."""
    with api.sdk.failing(model):
        answer = await api.ask("/responses/input_tokens", {"model": model, **question(generation, api.provider)})
        tokens = answer["input_tokens"]
        return pb.CountTokensResponse(input_tokens=tokens, provider=api.provider, model=model)


def question(generation: pb.Generation, provider: str) -> dict[str, Any]:
    """Returns the part of a request that the model reads."""
    numbers = count(1)  # Passages are numbered across the whole request, for citing.
    items = [item for message in generation.messages for item in _items(message, provider, numbers)]
    body: dict[str, Any] = {"input": items}
    choice = generation.tool_choice
    if generation.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": parameters_of(tool),
                "strict": False,  # Otherwise the vendor would demand schemas of its strict kind.
            }
            for tool in generation.tools
        ]
        if choice.one_at_a_time:
            body["parallel_tool_calls"] = False
    if choice.name:
        body["tool_choice"] = {"type": "function", "name": choice.name}
    elif choice.mode in _MODES:
        body["tool_choice"] = _MODES[choice.mode]
    if generation.HasField("output_schema"):
        body["text"] = {"format": {"type": "json_schema", **strict_schema.answer(generation.output_schema)}}
    if effort := EFFORTS.get(generation.parameters.reasoning_effort):
        body["reasoning"] = {"effort": effort, **({} if effort == "none" else {"summary": "auto"})}
    return body


def _parameters(generation: pb.Generation, provider: str) -> dict[str, Any]:
    body = cache(generation.prompt_cache, provider, _CACHE_LIFETIMES)
    for name in ("max_output_tokens", "temperature", "top_p"):
        if generation.parameters.HasField(name):
            body[name] = getattr(generation.parameters, name)
    return body


def _items(message: content_pb2.Message, provider: str, numbers: Iterable[int]) -> Iterable[dict[str, Any]]:
    """Yields a message as OpenAI's items, in order: calls, results and reasoning go beside messages there."""
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if block := _block(part, message.role, provider, numbers):
            content.append(block)
        elif item := _item(part):
            yield from _said(message.role, content)
            content = []
            yield item
    yield from _said(message.role, content)


def _said(role: content_pb2.Role.ValueType, content: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    if not content:
        return
    if role == content_pb2.ROLE_ASSISTANT:
        # Earlier answers are sent as text: OpenAI's own form has ids, which are not kept.
        yield {"role": "assistant", "content": _PARAGRAPH.join(block["text"] for block in content)}
    else:  # What comes with a tool's result is the caller's.
        yield {"role": _ROLES.get(role, "user"), "content": content}


def _block(
    part: content_pb2.Part, role: content_pb2.Role.ValueType, provider: str, numbers: Iterable[int]
) -> dict[str, Any] | None:
    """Returns a part that goes inside a message; None: it goes beside the message, or is not sent."""
    match part.WhichOneof("kind"):
        case "text" if part.text.text:
            return {"type": "input_text", "text": part.text.text}
        case "passage":
            return {"type": "input_text", "text": part_text.passage(part.passage, next(iter(numbers)))}
        case "image" if role != content_pb2.ROLE_USER:
            raise unsupported(provider, "images outside of user messages")
        case "image":
            return {"type": "input_image", "image_url": image_url(part.image), "detail": "auto"}
        case _:
            return None


def _item(part: content_pb2.Part) -> dict[str, Any] | None:
    """Returns a part that goes beside messages; None: it is not sent."""
    match part.WhichOneof("kind"):
        case "tool_call":
            call = part.tool_call
            arguments = part_text.dump(call.arguments)
            return {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": arguments}
        case "tool_result":
            output = part_text.marked_result(part.tool_result)
            return {"type": "function_call_output", "call_id": part.tool_result.call_id, "output": output}
        case "reasoning" if part.reasoning.signature.startswith(_PROOF):
            proof = json.loads(part.reasoning.signature.removeprefix(_PROOF))
            paragraphs = part.reasoning.text.split(_PARAGRAPH) if part.reasoning.text else []
            summary = [{"type": "summary_text", "text": text} for text in paragraphs]
            return {"type": "reasoning", **proof, "summary": summary}
        case _:
            return None


class _Growth:
    """Reads the events of one answer."""

    def __init__(self, provider: str, model: str) -> None:
        self.failed: Failure | None = None
        self.answer = Answer(provider)
        self._model = model
        self._calls: dict[int, int] = {}  # Index of an item -> index of its call in the answer.
        self._usage: content_pb2.Usage | None = None
        self._refused = False
        self._finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED

    @property
    def is_whole(self) -> bool:
        """Whether its end has come."""
        return self._finish_reason != pb.FINISH_REASON_UNSPECIFIED

    def read(self, event: Mapping[str, Any]) -> None:
        """Adds an event."""
        match event["type"]:
            case "response.output_text.delta":
                self.answer.text(event["delta"])
            case "response.refusal.delta":
                self._refused = True
                self.answer.text(event["delta"])
            case "response.reasoning_summary_part.added" if event["summary_index"]:
                self.answer.reasoning(_PARAGRAPH)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                self.answer.reasoning(event["delta"])
            case "response.function_call_arguments.delta":
                self.answer.call(self._calls[event["output_index"]], "", "", event["delta"])
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                index = self._calls[event["output_index"]] = len(self._calls)
                self.answer.call(index, event["item"]["call_id"], event["item"]["name"], "")
            case "response.output_item.done" if event["item"]["type"] == "reasoning":
                self._prove(event["item"])
            case "response.completed" | "response.incomplete" | "response.failed":
                self._end(event["response"])
            case "error":
                self.failed = failure.answered(0, {}, event)
            case _:
                pass

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer."""
        return self.answer.finish(self._model, self._finish_reason, self._usage)

    def _prove(self, item: Mapping[str, Any]) -> None:
        if item.get("encrypted_content"):
            proof = {"id": item["id"], "encrypted_content": item["encrypted_content"]}
            self.answer.sign(_PROOF + json.dumps(proof, sort_keys=True).encode())

    def _end(self, response: Mapping[str, Any]) -> None:
        self._model = response.get("model") or self._model
        if response.get("usage"):
            self._usage = _usage(response["usage"])
            self.answer.used(self._usage)
        match response["status"]:
            case "failed":
                self.failed = failure.answered(0, {}, response["error"])
            case "incomplete":
                self._finish_reason = _INCOMPLETE[response["incomplete_details"]["reason"]]
            case _ if self._refused:
                self._finish_reason = pb.FINISH_REASON_CONTENT_FILTER
            case _:
                self._finish_reason = pb.FINISH_REASON_TOOL_CALLS if self._calls else pb.FINISH_REASON_STOP


def _usage(usage: Mapping[str, Any]) -> content_pb2.Usage:
    read, written = member(usage, "input_tokens_details"), member(usage, "output_tokens_details")
    return content_pb2.Usage(
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        cached_input_tokens=number(read, "cached_tokens"),
        cache_write_tokens=number(read, "cache_write_tokens"),
        reasoning_tokens=number(written, "reasoning_tokens"),
    )
