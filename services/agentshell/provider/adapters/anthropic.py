"""Anthropic's Messages, through Anthropic's own SDK.

A request's passages go as delimited text. System messages before all others are the system prompt; a later one stays
in its place, and a model that cannot take it there refuses. Reasoning goes back with Anthropic's proof or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from agentshell.content import plain
from agentshell.mesh import errors
from agentshell.mesh.config import VendorConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import pricing
from agentshell.provider.adapters import failure, part_text
from agentshell.provider.adapters.adapter import unsupported
from agentshell.provider.adapters.answer import Answer
from agentshell.provider.adapters.failure import Failure, Kind
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:  # The SDK takes a second and 60 MB to import: only who calls Anthropic pays for it.
    from anthropic import AsyncAnthropic
    from anthropic.types import RawMessageStreamEvent

_NAME = "anthropic"
_MODEL = "claude-sonnet-5-5"
_KEY_VARIABLE = "ANTHROPIC_API_KEY"
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
# What `Reasoning.signature` begins with, so that another vendor's proof is never sent to this one.
_THINKING = b"anthropic/thinking/"
_REDACTED = b"anthropic/redacted/"


class AnthropicAdapter:
    """Generates and counts tokens. Has no embeddings and no moderation."""

    name = _NAME

    def __init__(self, config: VendorConfig, environment: Mapping[str, str]) -> None:
        self.default_model = config.model or _MODEL
        self._base_url = config.base_url or None
        self._key_variable = config.api_key_env or _KEY_VARIABLE
        self._environment = environment
        self._client: AsyncAnthropic | None = None

    async def stream(
        self, generation: pb.Generation, model: str
    ) -> AsyncGenerator[pb.GenerationDelta | pb.GenerateResponse]:
        """Yields deltas and the whole answer."""
        request = {**_conversation(generation), **_parameters(generation.parameters)}
        client = await self._open()
        growth = _Growth(model)
        try:
            async with await client.messages.create(model=model, stream=True, **request) as events:
                async for event in events:
                    for delta in growth.read(event):
                        yield delta
            if not growth.ended:
                raise failure.error(Failure(Kind.CONNECTION), _NAME, model, self._key(), None)
            yield growth.finish()
        except AgentShellError:
            raise
        except Exception as error:
            raise self._error(error, model) from error

    async def embed(self, texts: Sequence[str], model: str) -> pb.EmbedResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(_NAME, "embeddings")

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(_NAME, "moderation")

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns Anthropic's own count."""
        request = _conversation(generation)
        client = await self._open()
        try:
            answer = await client.messages.count_tokens(model=model, **request)
            return pb.CountTokensResponse(input_tokens=answer.input_tokens)
        except Exception as error:
            raise self._error(error, model) from error

    def list_models(self) -> list[pb.Model]:
        """Returns the priced models and the default."""
        return pricing.models(_NAME, self.default_model)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    def _key(self) -> str:
        return self._environment.get(self._key_variable, "")

    async def _open(self) -> AsyncAnthropic:
        key = self._key()
        if not key:
            raise failure.no_key(_NAME, self._key_variable)
        if self._client is None:
            await asyncio.to_thread(importlib.import_module, "anthropic")
            from anthropic import AsyncAnthropic

            client = AsyncAnthropic(api_key=key, base_url=self._base_url, max_retries=0, open_telemetry=False)
            self._client = self._client or client  # Another call may have been here meanwhile.
        self._client.api_key = key  # A key may be replaced while the process runs.
        return self._client

    def _error(self, error: Exception, model: str) -> AgentShellError:
        import anthropic
        import httpx2

        match error:
            case anthropic.APITimeoutError() | httpx2.TimeoutException():
                found = Failure(Kind.TIMEOUT)
            case anthropic.APIConnectionError() | httpx2.TransportError():
                found = Failure(Kind.CONNECTION)
            case anthropic.APIStatusError():  # An error within a stream comes with the stream's own status of 200.
                retry_after = error.response.headers.get("retry-after", "")
                message = error.api_message or error.message
                found = Failure(Kind.ANSWERED, error.status_code, error.type or "", message, retry_after)
            case ValueError() | LookupError() | AttributeError() | TypeError():  # What we read is not what we expect.
                found = Failure(Kind.MALFORMED, message=type(error).__name__)
            case _:
                return errors.of(error)
        return failure.error(found, _NAME, model, self._key(), error)


class _Growth:
    """Reads the events of one answer."""

    def __init__(self, model: str) -> None:
        self.ended = False
        self._model = model
        self._answer = Answer(_NAME)
        self._calls: dict[int, int] = {}  # Index of a block -> which call of the answer it is.
        self._stop_reason = ""
        self._usage: dict[str, int] = {}

    def read(self, event: RawMessageStreamEvent) -> Iterable[pb.GenerationDelta]:
        """Yields what an event adds."""
        match event.type:
            case "message_start":
                self._model = event.message.model
                self._count(event.message.usage)
            case "content_block_start":
                yield from self._begin(event.index, event.content_block)
            case "content_block_delta":
                yield from self._grow(event.index, event.delta)
            case "message_delta":
                self._stop_reason = event.delta.stop_reason or self._stop_reason
                self._count(event.usage)
            case "message_stop":
                self.ended = True
            case _:
                pass

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer."""
        counts = self._usage
        cached, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
        usage = content_pb2.Usage(
            input_tokens=counts["input_tokens"] + cached + written,  # Anthropic counts these apart.
            output_tokens=counts["output_tokens"],
            cached_input_tokens=cached,
            reasoning_tokens=counts.get("thinking_tokens", 0),
        )
        return self._answer.finish(self._model, _FINISH[self._stop_reason], usage, written)

    def _begin(self, index: int, block: Any) -> Iterable[pb.GenerationDelta]:
        match block.type:
            case "tool_use":
                self._calls[index] = len(self._calls)
                yield self._answer.call(self._calls[index], block.id, block.name, "")
            case "redacted_thinking":
                self._answer.sign(_REDACTED + block.data.encode())
            case "text" if block.text:
                yield self._answer.text(block.text)
            case _:
                pass

    def _grow(self, index: int, delta: Any) -> Iterable[pb.GenerationDelta]:
        match delta.type:
            case "text_delta":
                yield self._answer.text(delta.text)
            case "thinking_delta":
                yield self._answer.reasoning(delta.thinking)
            case "signature_delta":
                self._answer.sign(_THINKING + delta.signature.encode())
            case "input_json_delta" if delta.partial_json:
                yield self._answer.call(self._calls[index], "", "", delta.partial_json)
            case _:
                pass

    def _count(self, usage: Any) -> None:
        """Takes over counts, which are of the whole answer so far and not of the event."""
        for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            value = getattr(usage, name, None)
            if value is not None:
                self._usage[name] = value
        if usage.output_tokens_details is not None:
            self._usage["thinking_tokens"] = usage.output_tokens_details.thinking_tokens


def _conversation(generation: pb.Generation) -> dict[str, Any]:
    numbers = count(1)  # Passages are numbered through the whole request, for citing.
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for message in generation.messages:
        content = [block for part in message.parts for block in _blocks(part, message.role, numbers)]
        if not content:
            continue
        if message.role == content_pb2.ROLE_SYSTEM and not messages:
            system += content
        else:
            messages.append({"role": _role(message.role), "content": content})
    conversation: dict[str, Any] = {"messages": messages}
    if system:
        conversation["system"] = system
    if generation.tools:
        conversation["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": plain(tool.input_schema) or {"type": "object", "properties": {}},
            }
            for tool in generation.tools
        ]
    return conversation


def _parameters(parameters: pb.GenerationParameters) -> dict[str, Any]:
    if parameters.HasField("seed"):
        raise unsupported(_NAME, "seed")
    limit = parameters.max_output_tokens if parameters.HasField("max_output_tokens") else _MAX_OUTPUT_TOKENS
    request: dict[str, Any] = {"max_tokens": limit}
    if parameters.stop:
        request["stop_sequences"] = list(parameters.stop)
    # The SDK has these no more, since models from Claude Sonnet 5 on refuse them; older ones take them.
    sampling: dict[str, float] = {}
    if parameters.HasField("temperature"):
        sampling["temperature"] = parameters.temperature
    if parameters.HasField("top_p"):
        sampling["top_p"] = parameters.top_p
    return {**request, "extra_body": sampling} if sampling else request


def _role(role: content_pb2.Role.ValueType) -> str:
    match role:
        case content_pb2.ROLE_ASSISTANT:
            return "assistant"
        case content_pb2.ROLE_SYSTEM:
            return "system"
        case _:  # Results of tools are the user's there.
            return "user"


def _blocks(
    part: content_pb2.Part, role: content_pb2.Role.ValueType, numbers: Iterable[int]
) -> Iterable[dict[str, Any]]:
    match part.WhichOneof("kind"):
        case "text" if part.text.text.strip():  # The API refuses blank text.
            yield {"type": "text", "text": part.text.text}
        case "passage":
            yield {"type": "text", "text": part_text.passage(part.passage, next(iter(numbers)))}
        case "image" if role != content_pb2.ROLE_USER:
            raise unsupported(_NAME, "images outside of user messages")
        case "image":
            yield {"type": "image", "source": _source(part.image)}
        case "tool_call":
            call = part.tool_call
            yield {"type": "tool_use", "id": call.call_id, "name": call.name, "input": plain(call.arguments)}
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
