"""OpenAI's Chat Completions, through OpenAI's own SDK.

Passages are sent as delimited text. Reasoning of earlier turns is left out: this API takes none back.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from agentshell import tokens
from agentshell.provider.adapters import failure, openai, part_text, strict_schema
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

PATH = "/chat/completions"
WITH_USAGE: Mapping[str, Any] = {"stream_options": {"include_usage": True}}
_CACHE_LIFETIMES = {"30m": timedelta(minutes=30)}
_MODES = {pb.ToolChoice.MODE_NONE: "none", pb.ToolChoice.MODE_REQUIRED: "required"}
_FINISH: Mapping[str, pb.FinishReason.ValueType] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
    "eos": pb.FINISH_REASON_STOP,  # Together's.
    "model_length": pb.FINISH_REASON_LENGTH,  # Mistral's.
}
_ROLES = {content_pb2.ROLE_SYSTEM: "system", content_pb2.ROLE_USER: "user", content_pb2.ROLE_ASSISTANT: "assistant"}


class OpenAIChatAdapter:
    """Generates with Chat Completions, counts tokens by the vendor's own count, embeds and moderates."""

    abilities = openai.OpenAIAdapter.abilities | {pb.ABILITY_STOP, pb.ABILITY_SEED}

    def __init__(self, access: Access) -> None:
        self.default_model = access.model or MODEL
        self._api = OpenAIApi(access)

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields deltas and the whole answer."""
        growth = ChatGrowth(generation, self._api.provider, model)
        return converse(self._api.sdk, partial(self._ask, generation, model), growth, model)

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns one vector per text."""
        return await self._api.embed(texts, model, dimension)

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns one verdict per text."""
        return await self._api.moderate(texts, model)

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns OpenAI's own count."""
        return await openai.count_tokens(self._api, generation, model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._api.sdk.close()

    async def _ask(self, generation: pb.Generation, model: str) -> ClientResponse:
        provider = self._api.provider
        body = {"model": model, **request(generation, provider, "max_completion_tokens"), **WITH_USAGE}
        body |= cache(generation.prompt_cache, provider, _CACHE_LIFETIMES)
        return await self._api.stream(PATH, body)


class ChatGrowth:
    """Reads the chunks of one answer, whichever of their fields are present."""

    def __init__(self, generation: pb.Generation, provider: str, model: str) -> None:
        self.failed: Failure | None = None
        self._generation = generation
        self.answer = Answer(provider)
        self._model = model
        self._usage: content_pb2.Usage | None = None
        self._refused = False
        self._ids: list[str] = []  # Of the calls.
        self._indices: dict[int | None, int] = {}  # The vendor's index -> index of the call in the answer.
        self._finish_reason = ""

    @property
    def is_whole(self) -> bool:
        """Whether its end has come; its usage may come after it."""
        return self._finish_reason != ""

    def read(self, event: Mapping[str, Any]) -> None:
        """Adds a chunk."""
        if event.get("error"):
            self.failed = failure.answered(0, {}, event)
        self._model = event.get("model") or self._model
        for choice in event.get("choices") or ():
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            self._grow(member(choice, "delta"))
        if event.get("usage") and (usage := _usage(event["usage"])) != self._usage:
            self._usage = usage
            self.answer.used(usage)

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer. Usage that the vendor does not report is estimated."""
        reason = _FINISH[self._finish_reason]
        if self._refused:
            reason = pb.FINISH_REASON_CONTENT_FILTER
        elif self._ids and reason == pb.FINISH_REASON_STOP:  # As when the request demanded the tool.
            reason = pb.FINISH_REASON_TOOL_CALLS
        response = self.answer.finish(self._model, reason, self._usage)
        if self._usage is None:
            response.usage.input_tokens = tokens.estimate_generation(self._generation)
            response.usage.output_tokens = tokens.estimate_parts(response.message.parts)
            response.usage.estimated = True
        return response

    def _grow(self, delta: Mapping[str, Any]) -> None:
        # OpenAI's imitators have two names for it; OpenAI shows no reasoning here.
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            self.answer.reasoning(reasoning)
        match delta.get("content"):
            case str(text) if text:
                self.answer.text(text)
            case [*blocks]:  # Mistral's reasoning models.
                for block in blocks:
                    self._add(block)
            case _:
                pass
        if delta.get("refusal"):
            self._refused = True
            self.answer.text(delta["refusal"])
        for call in delta.get("tool_calls") or ():
            self._call(call)

    def _add(self, block: Mapping[str, Any]) -> None:
        if block["type"] == "thinking":
            for inner in block["thinking"]:
                self.answer.reasoning(inner["text"])
        else:
            self.answer.text(block["text"])

    def _call(self, call: Mapping[str, Any]) -> None:
        """Adds a piece of a tool call. Some vendors leave out its index or its id, or give all calls the same index."""
        function = member(call, "function")
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        at, call_id = call.get("index"), call.get("id") or ""
        index = self._indices.get(at, -1)
        if index < 0 or (call_id and call_id != self._ids[index]) or (at is None and name):
            index = self._indices[at] = len(self._ids)
            self._ids.append(call_id or f"call_{uuid.uuid4().hex}")
            self.answer.call(index, self._ids[index], name, arguments)
        else:
            self.answer.call(index, "", "", arguments)


def _usage(usage: Mapping[str, Any]) -> content_pb2.Usage:
    read, written = member(usage, "prompt_tokens_details"), member(usage, "completion_tokens_details")
    return content_pb2.Usage(
        input_tokens=usage["prompt_tokens"],
        output_tokens=number(usage, "completion_tokens"),
        cached_input_tokens=number(read, "cached_tokens"),
        cache_write_tokens=number(read, "cache_write_tokens"),
        image_input_tokens=number(read, "image_tokens"),
        audio_input_tokens=number(read, "audio_tokens"),
        reasoning_tokens=number(written, "reasoning_tokens"),
        audio_output_tokens=number(written, "audio_tokens"),
    )


def request(generation: pb.Generation, provider: str, limit_name: str) -> dict[str, Any]:
    """Returns a request without its model. `limit_name`: what the server calls the limit on output tokens."""
    numbers = count(1)  # Passages are numbered across the whole request, for citing.
    messages = [sent for message in generation.messages for sent in _messages(message, provider, numbers)]
    body: dict[str, Any] = {"messages": messages, **_tools(generation)}
    if generation.HasField("output_schema"):
        schema = strict_schema.answer(generation.output_schema)
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    parameters = generation.parameters
    if parameters.HasField("max_output_tokens"):
        body[limit_name] = parameters.max_output_tokens
    for name in ("temperature", "top_p", "seed"):
        if parameters.HasField(name):
            body[name] = getattr(parameters, name)
    if parameters.stop:
        body["stop"] = list(parameters.stop)
    if effort := EFFORTS.get(parameters.reasoning_effort):
        body["reasoning_effort"] = effort
    return body


def _tools(generation: pb.Generation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    choice = generation.tool_choice
    if generation.tools:
        found["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": parameters_of(tool)},
            }
            for tool in generation.tools
        ]
        if choice.one_at_a_time:
            found["parallel_tool_calls"] = False
    if choice.name:
        found["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.mode in _MODES:
        found["tool_choice"] = _MODES[choice.mode]
    return found


def _messages(message: content_pb2.Message, provider: str, numbers: Iterable[int]) -> Iterable[dict[str, Any]]:
    """Yields a message as OpenAI's: tool results are messages of their own there, before the rest."""
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        match part.WhichOneof("kind"):
            case "tool_result":
                text = part_text.marked_result(part.tool_result)
                yield {"role": "tool", "tool_call_id": part.tool_result.call_id, "content": text}
            case "tool_call":
                call = part.tool_call
                function = {"name": call.name, "arguments": part_text.dump(call.arguments)}
                calls.append({"id": call.call_id, "type": "function", "function": function})
            case "image" if message.role != content_pb2.ROLE_USER:
                raise unsupported(provider, "images outside of user messages")
            case "image":
                content.append({"type": "image_url", "image_url": {"url": image_url(part.image)}})
            case "text":
                content.append({"type": "text", "text": part.text.text})
            case "passage":
                content.append({"type": "text", "text": part_text.passage(part.passage, next(iter(numbers)))})
            case _:  # Reasoning, which this API does not take back.
                pass
    if content or calls:
        role = _ROLES.get(message.role, "user")  # What comes with a tool's result is the caller's.
        sent: dict[str, Any] = {"role": role, "content": _content(content)}
        if calls:
            sent["tool_calls"] = calls
        yield sent


def _content(content: list[dict[str, Any]]) -> str | list[dict[str, Any]] | None:
    """Returns text as one string, which every server accepts, unless an image needs the longer form."""
    if any(item["type"] != "text" for item in content):
        return content
    return "\n\n".join(item["text"] for item in content) or None
