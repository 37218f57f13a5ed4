"""Anthropic's Messages API, through Anthropic's own SDK.

A request's passages are sent as delimited text. Leading system messages are the system prompt; a later one stays in
place, and a model that cannot take it there refuses. Reasoning is sent back with Anthropic's proof or not at all.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain, count, takewhile
from typing import TYPE_CHECKING, Any, cast

from agentshell.provider.adapters import failure, part_text, stainless
from agentshell.provider.adapters.adapter import Access, Deltas, unsupported
from agentshell.provider.adapters.answer import Answer
from agentshell.provider.adapters.failure import Failure
from agentshell.provider.adapters.sdk import Sdk
from agentshell.provider.adapters.stainless import Client
from agentshell.provider.adapters.streaming import converse
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from anthropic import AsyncAnthropic

    from agentshell.provider.adapters.http import Http

_MODEL = "claude-sonnet-5-5"
_PATH = "/v1/messages"
# The API demands a limit and has no default of its own; thinking counts towards it.
_MAX_OUTPUT_TOKENS = 16_384

_FINISH: Mapping[str, pb.FinishReason.ValueType] = {
    "end_turn": pb.FINISH_REASON_STOP,
    "stop_sequence": pb.FINISH_REASON_STOP,
    "max_tokens": pb.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": pb.FINISH_REASON_LENGTH,
    "tool_use": pb.FINISH_REASON_TOOL_CALLS,
    "refusal": pb.FINISH_REASON_CONTENT_FILTER,
}
_EFFORTS: Mapping[pb.ReasoningEffort.ValueType, str] = {
    pb.REASONING_EFFORT_MINIMAL: "low",  # The lowest there is.
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}
# How long cached input may be kept: the first lifetime that is long enough is requested.
_LIFETIMES = {"5m": timedelta(minutes=5), "1h": timedelta(hours=1)}
# Prefixes of `Reasoning.signature`, so that another vendor's proof is never sent to this one.
_THINKING = b"anthropic/thinking/"
_REDACTED = b"anthropic/redacted/"


class AnthropicAdapter:
    """Generates and counts tokens. Has no embeddings and no moderation."""

    abilities = frozenset(
        {
            pb.ABILITY_TEMPERATURE,
            pb.ABILITY_TOP_P,
            pb.ABILITY_STOP,
            pb.ABILITY_REASONING_EFFORT,
            pb.ABILITY_TOOLS,
            pb.ABILITY_TOOL_CHOICE,
            pb.ABILITY_IMAGES,
            pb.ABILITY_IMAGE_LINKS,
            pb.ABILITY_OUTPUT_SCHEMA,
            pb.ABILITY_PROMPT_CACHE,
            pb.ABILITY_PROMPT_CACHE_TTL,
            pb.ABILITY_TOKEN_COUNT,
        }
    )

    def __init__(self, access: Access) -> None:
        self.default_model = access.model or _MODEL
        self._provider = access.provider
        self._base_url = access.base_url or None
        self._sdk = Sdk(access, "anthropic", self._connect, stainless.explain("anthropic"))

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields deltas and the whole answer."""
        return converse(self._sdk, partial(self._ask, generation, model), _Growth(self._provider, model), model)

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(self._provider, "embeddings")

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(self._provider, "moderation")

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns Anthropic's own count."""
        client = (await self._sdk.open()).sdk
        request = {"model": model, **_prompt(generation, self._provider)}
        with self._sdk.failing(model):
            answer = await client.post(f"{_PATH}/count_tokens", cast_to=object, body=request)
            tokens = cast("Mapping[str, Any]", answer)["input_tokens"]
            return pb.CountTokensResponse(input_tokens=tokens, provider=self._provider, model=model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._sdk.close()

    async def _ask(self, generation: pb.Generation, model: str) -> ClientResponse:
        body = {"model": model, **_prompt(generation, self._provider), **_parameters(generation.parameters)}
        return await (await self._sdk.open()).stream(_PATH, body)

    def _connect(self, key: str, http: Http) -> Client[AsyncAnthropic]:
        from anthropic import AsyncAnthropic

        sending = http.client()
        client = AsyncAnthropic(
            api_key=key, base_url=self._base_url, max_retries=0, http_client=sending, open_telemetry=False
        )
        return Client(client, http)


class _Growth:
    """Reads the events of one answer."""

    def __init__(self, provider: str, model: str) -> None:
        self.is_whole = False
        self.failed: Failure | None = None
        self.answer = Answer(provider)
        self._model = model
        self._calls: dict[int, int] = {}  # Index of a block -> index of its call in the answer.
        self._stop_reason = ""
        self._counts: dict[str, int] = {}

    def read(self, event: Mapping[str, Any]) -> None:
        """Adds an event."""
        match event["type"]:
            case "content_block_delta":
                self._grow(event["index"], event["delta"])
            case "content_block_start":
                self._begin(event["index"], event["content_block"])
            case "message_start":
                self._model = event["message"]["model"]
                self._count(event["message"]["usage"])
            case "message_delta":
                self._stop_reason = event["delta"]["stop_reason"] or self._stop_reason
                self._count(event["usage"])
            case "message_stop":
                self.is_whole = True
            case "error":
                self.failed = failure.answered(0, {}, event)
            case _:
                pass

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer."""
        return self.answer.finish(self._model, _FINISH[self._stop_reason], self._usage())

    def _begin(self, index: int, block: Mapping[str, Any]) -> None:
        match block["type"]:
            case "tool_use":
                self._calls[index] = len(self._calls)
                self.answer.call(self._calls[index], block["id"], block["name"], "")
            case "redacted_thinking":
                self.answer.sign(_REDACTED + block["data"].encode())
            case "text" if block["text"]:
                self.answer.text(block["text"])
            case _:
                pass

    def _grow(self, index: int, delta: Mapping[str, Any]) -> None:
        match delta["type"]:
            case "text_delta":
                self.answer.text(delta["text"])
            case "input_json_delta" if delta["partial_json"]:
                self.answer.call(self._calls[index], "", "", delta["partial_json"])
            case "thinking_delta" if delta["thinking"]:
                self.answer.reasoning(delta["thinking"])
            case "signature_delta":
                self.answer.sign(_THINKING + delta["signature"].encode())
            case _:
                pass

    def _count(self, usage: Mapping[str, Any]) -> None:
        """Takes over counts, which are for the whole answer so far and not for the event."""
        details = (usage.get("output_tokens_details"), usage.get("cache_creation"))
        parts: list[Mapping[str, Any]] = [usage, *filter(None, details)]
        self._counts |= {name: value for part in parts for name, value in part.items() if isinstance(value, int)}
        self.answer.used(self._usage())

    def _usage(self) -> content_pb2.Usage:
        counts = self._counts
        cached, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
        return content_pb2.Usage(
            input_tokens=counts["input_tokens"] + cached + written,  # Anthropic counts these separately.
            output_tokens=counts["output_tokens"],
            cached_input_tokens=cached,
            cache_write_tokens=written,
            long_cache_write_tokens=counts.get("ephemeral_1h_input_tokens", 0),
            reasoning_tokens=counts.get("thinking_tokens", 0),
        )


def _prompt(generation: pb.Generation, provider: str) -> dict[str, Any]:
    """Returns the part of a request that the model reads, which is what is counted."""
    numbers = count(1)  # Passages are numbered across the whole request, for citing.
    contents = [
        [block for part in message.parts for block in _blocks(part, message.role, numbers, provider)]
        for message in generation.messages
    ]
    tools = [_tool(tool) for tool in generation.tools]
    first = sum(1 for _ in takewhile(lambda message: message.role == content_pb2.ROLE_SYSTEM, generation.messages))
    if generation.HasField("prompt_cache"):
        kept = contents[: generation.prompt_cache.message_count or first]
        _mark([*tools, *chain.from_iterable(kept)], generation.prompt_cache, provider)
    messages = [
        {"role": _role(message.role), "content": content}
        for message, content in zip(generation.messages[first:], contents[first:], strict=True)
        if content
    ]
    request: dict[str, Any] = {"messages": messages}
    if system := list(chain.from_iterable(contents[:first])):
        request["system"] = system
    if tools:
        request["tools"] = tools
        if generation.HasField("tool_choice"):
            request["tool_choice"] = _tool_choice(generation.tool_choice)
    return request | _thinking(generation.parameters.reasoning_effort) | _output(generation, provider)


def _mark(blocks: Sequence[dict[str, Any]], cache: pb.PromptCache, provider: str) -> None:
    """Marks where the part to cache ends; reasoning cannot be marked."""
    control = {"type": "ephemeral"}
    if cache.HasField("ttl"):
        wanted = cache.ttl.ToTimedelta()
        name = next((name for name, lifetime in _LIFETIMES.items() if lifetime >= wanted), None)
        if name is None:
            raise unsupported(provider, "a prompt cache ttl of more than an hour")
        control["ttl"] = name
    for block in reversed(blocks):
        if block.get("type") not in ("thinking", "redacted_thinking"):
            block["cache_control"] = control
            break


def _tool(tool: pb.ToolDefinition) -> dict[str, Any]:
    schema = part_text.tool_schema(tool.input_schema) or {"type": "object", "properties": {}}
    return {"name": tool.name, "description": tool.description, "input_schema": schema}


def _tool_choice(choice: pb.ToolChoice) -> dict[str, Any]:
    if choice.mode == pb.ToolChoice.MODE_NONE:
        return {"type": "none"}
    found: dict[str, Any] = {"type": "auto"}
    if choice.mode == pb.ToolChoice.MODE_REQUIRED:
        found = {"type": "tool", "name": choice.name} if choice.name else {"type": "any"}
    return {**found, "disable_parallel_tool_use": True} if choice.one_at_a_time else found


def _thinking(effort: pb.ReasoningEffort.ValueType) -> dict[str, Any]:
    match effort:
        case pb.REASONING_EFFORT_UNSPECIFIED:
            return {}
        case pb.REASONING_EFFORT_NONE:
            return {"thinking": {"type": "disabled"}}
        case _:
            return {"thinking": {"type": "adaptive", "display": "summarized"}}


def _output(generation: pb.Generation, provider: str) -> dict[str, Any]:
    output: dict[str, Any] = {}
    if effort := _EFFORTS.get(generation.parameters.reasoning_effort):
        output["effort"] = effort
    if generation.HasField("output_schema"):
        from anthropic import transform_schema

        try:  # What Anthropic cannot enforce goes into descriptions; the answer is fully validated later.
            schema = transform_schema(part_text.schema(generation.output_schema))
        except ValueError as error:
            raise unsupported(provider, f"this output schema: {error}") from error
        output["format"] = {"type": "json_schema", "schema": schema}
    return {"output_config": output} if output else {}


def _parameters(parameters: pb.GenerationParameters) -> dict[str, Any]:
    limit = parameters.max_output_tokens if parameters.HasField("max_output_tokens") else _MAX_OUTPUT_TOKENS
    request: dict[str, Any] = {"max_tokens": limit}
    if parameters.stop:
        request["stop_sequences"] = list(parameters.stop)
    # Models from Claude Sonnet 5 on refuse these two; older ones take them.
    if parameters.HasField("temperature"):
        request["temperature"] = parameters.temperature
    if parameters.HasField("top_p"):
        request["top_p"] = parameters.top_p
    return request


def _role(role: content_pb2.Role.ValueType) -> str:
    match role:
        case content_pb2.ROLE_ASSISTANT:
            return "assistant"
        case content_pb2.ROLE_SYSTEM:
            return "system"
        case _:  # Tool results belong to the user there.
            return "user"


def _blocks(
    part: content_pb2.Part, role: content_pb2.Role.ValueType, numbers: Iterable[int], provider: str
) -> Iterable[dict[str, Any]]:
    match part.WhichOneof("kind"):
        case "text" if part.text.text.strip():  # The API refuses blank text.
            yield {"type": "text", "text": part.text.text}
        case "passage":
            yield {"type": "text", "text": part_text.passage(part.passage, next(iter(numbers)))}
        case "image" if role != content_pb2.ROLE_USER:
            raise unsupported(provider, "images outside of user messages")
        case "image":
            yield {"type": "image", "source": _source(part.image)}
        case "tool_call":
            call = part.tool_call
            yield {"type": "tool_use", "id": call.call_id, "name": call.name, "input": part_text.schema(call.arguments)}
        case "tool_result":
            result = part.tool_result
            block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call_id}
            yield {**block, "content": part_text.result(result), "is_error": result.is_error}
        case "reasoning":
            yield from _proven(part.reasoning)
        case _:
            pass


def _proven(reasoning: content_pb2.Reasoning) -> Iterable[dict[str, Any]]:
    if reasoning.signature.startswith(_THINKING):
        signature = reasoning.signature.removeprefix(_THINKING).decode()
        yield {"type": "thinking", "thinking": reasoning.text, "signature": signature}
    elif reasoning.signature.startswith(_REDACTED):
        yield {"type": "redacted_thinking", "data": reasoning.signature.removeprefix(_REDACTED).decode()}


def _source(image: content_pb2.Image) -> dict[str, str]:
    if image.WhichOneof("source") == "uri":
        return {"type": "url", "url": image.uri}
    return {"type": "base64", "media_type": image.media_type, "data": base64.b64encode(image.data).decode()}
