"""OpenAI, and whatever speaks its Chat Completions, through OpenAI's own SDK.

A request's passages go as delimited text. Reasoning of earlier turns is left out: this API takes none back.
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
from agentshell.provider import pricing, tokens
from agentshell.provider.adapters import failure, part_text
from agentshell.provider.adapters.adapter import unsupported
from agentshell.provider.adapters.answer import Answer
from agentshell.provider.adapters.failure import Failure, Kind
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:  # The SDK takes half a second and 40 MB to import: only who calls OpenAI pays for it.
    from openai import AsyncOpenAI
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletionChunk, ChatCompletionStreamOptionsParam

_NAME = "openai"
_MODEL = "gpt-6.1-sol"
_EMBEDDING_MODEL = "text-embedding-3-small"
_MODERATION_MODEL = "omni-moderation-latest"
_KEY_VARIABLE = "OPENAI_API_KEY"
_WITH_USAGE: ChatCompletionStreamOptionsParam = {"include_usage": True}

_FINISH: Mapping[str, pb.FinishReason.ValueType] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}
_ROLES = {content_pb2.ROLE_SYSTEM: "system", content_pb2.ROLE_USER: "user", content_pb2.ROLE_ASSISTANT: "assistant"}


class OpenAIAdapter:
    """Generates, embeds and moderates. Token counts are estimates: OpenAI's tokenizer needs files from the network."""

    name = _NAME

    def __init__(self, config: VendorConfig, environment: Mapping[str, str]) -> None:
        self.default_model = config.model or _MODEL
        self._base_url = config.base_url or None
        self._key_variable = config.api_key_env or _KEY_VARIABLE
        self._environment = environment
        self._client: AsyncOpenAI | None = None

    async def stream(
        self, generation: pb.Generation, model: str
    ) -> AsyncGenerator[pb.GenerationDelta | pb.GenerateResponse]:
        """Yields deltas and the whole answer."""
        request = _request(generation)
        client = await self._open()
        growth = _Growth(model)
        try:
            create = client.chat.completions.create
            async with await create(model=model, stream=True, stream_options=_WITH_USAGE, **request) as chunks:
                async for chunk in chunks:
                    for delta in growth.read(chunk):
                        yield delta
            if not growth.finish_reason:
                raise failure.error(Failure(Kind.CONNECTION), _NAME, model, self._key(), None)
            yield growth.finish()
        except AgentShellError:
            raise
        except Exception as error:
            raise self._error(error, model) from error

    async def embed(self, texts: Sequence[str], model: str) -> pb.EmbedResponse:
        """Returns a vector a text."""
        model = model or _EMBEDDING_MODEL
        client = await self._open()
        try:
            answer = await client.embeddings.create(input=list(texts), model=model, encoding_format="float")
            usage = content_pb2.Usage(input_tokens=answer.usage.prompt_tokens)
            cost = pricing.cost(_NAME, answer.model, usage)
            if cost is not None:
                usage.cost.CopyFrom(cost)
            vectors = [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
            if len(vectors) != len(texts):
                raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
            embeddings = [pb.Embedding(values=vector) for vector in vectors]
            return pb.EmbedResponse(embeddings=embeddings, usage=usage, provider=_NAME, model=answer.model)
        except Exception as error:
            raise self._error(error, model) from error

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns a verdict a text."""
        model = model or _MODERATION_MODEL
        client = await self._open()
        try:
            answer = await client.moderations.create(input=list(texts), model=model)
            verdicts = [
                pb.Verdict(
                    flagged=result.flagged,
                    scores={k: v for k, v in result.category_scores.to_dict().items() if isinstance(v, float)},
                )
                for result in answer.results
            ]
            if len(verdicts) != len(texts):
                raise ValueError(f"{len(verdicts)} verdicts for {len(texts)} texts")
            return pb.ModerateResponse(verdicts=verdicts, provider=_NAME, model=answer.model)
        except Exception as error:
            raise self._error(error, model) from error

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns an estimate."""
        return pb.CountTokensResponse(input_tokens=tokens.estimate_generation(generation), estimated=True)

    def list_models(self) -> list[pb.Model]:
        """Returns the priced models and the default."""
        return pricing.models(_NAME, self.default_model)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    def _key(self) -> str:
        return self._environment.get(self._key_variable, "")

    async def _open(self) -> AsyncOpenAI:
        key = self._key()
        if not key:
            raise failure.no_key(_NAME, self._key_variable)
        if self._client is None:
            await asyncio.to_thread(importlib.import_module, "openai")
            from openai import AsyncOpenAI

            client = AsyncOpenAI(api_key=key, base_url=self._base_url, max_retries=0)
            self._client = self._client or client  # Another call may have been here meanwhile.
        self._client.api_key = key  # A key may be replaced while the process runs.
        return self._client

    def _error(self, error: Exception, model: str) -> AgentShellError:
        import openai

        match error:
            case openai.APITimeoutError():
                found = Failure(Kind.TIMEOUT)
            case openai.APIConnectionError():
                found = Failure(Kind.CONNECTION)
            case openai.APIStatusError():
                retry_after = error.response.headers.get("retry-after", "")
                found = Failure(Kind.ANSWERED, error.status_code, _code(error), _message(error), retry_after)
            case openai.APIResponseValidationError():
                found = Failure(Kind.MALFORMED)
            case openai.APIError():  # Within a stream.
                found = Failure(Kind.ANSWERED, code=_code(error), message=_message(error))
            case ValueError() | LookupError() | AttributeError() | TypeError():  # What we read is not what we expect.
                found = Failure(Kind.MALFORMED, message=type(error).__name__)
            case _:
                return errors.of(error)
        return failure.error(found, _NAME, model, self._key(), error)


class _Growth:
    """Reads the chunks of one answer."""

    def __init__(self, model: str) -> None:
        self.finish_reason = ""
        self._model = model
        self._answer = Answer(_NAME)
        self._usage: CompletionUsage | None = None
        self._refused = False

    def read(self, chunk: ChatCompletionChunk) -> Iterable[pb.GenerationDelta]:
        """Yields what a chunk adds."""
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta.content:
                yield self._answer.text(choice.delta.content)
            if choice.delta.refusal:
                self._refused = True
                yield self._answer.text(choice.delta.refusal)
            for call in choice.delta.tool_calls or ():
                name = (call.function and call.function.name) or ""
                arguments = (call.function and call.function.arguments) or ""
                yield self._answer.call(call.index, call.id or "", name, arguments)

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer."""
        reason = pb.FINISH_REASON_CONTENT_FILTER if self._refused else _FINISH[self.finish_reason]
        if self._usage is None:
            return self._answer.finish(self._model, reason, None)
        read, written = self._usage.prompt_tokens_details, self._usage.completion_tokens_details
        usage = content_pb2.Usage(
            input_tokens=self._usage.prompt_tokens,
            output_tokens=self._usage.completion_tokens,
            cached_input_tokens=(read and read.cached_tokens) or 0,
            reasoning_tokens=(written and written.reasoning_tokens) or 0,
        )
        return self._answer.finish(self._model, reason, usage, (read and read.cache_write_tokens) or 0)


def _request(generation: pb.Generation) -> dict[str, Any]:
    numbers = count(1)  # Passages are numbered through the whole request, for citing.
    messages = [sent for message in generation.messages for sent in _messages(message, numbers)]
    request: dict[str, Any] = {"messages": messages}
    if generation.tools:
        request["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": plain(tool.input_schema) or {"type": "object", "properties": {}},
                },
            }
            for tool in generation.tools
        ]
    parameters = generation.parameters
    if parameters.HasField("max_output_tokens"):
        request["max_completion_tokens"] = parameters.max_output_tokens
    if parameters.HasField("temperature"):
        request["temperature"] = parameters.temperature
    if parameters.HasField("top_p"):
        request["top_p"] = parameters.top_p
    if parameters.HasField("seed"):
        request["seed"] = parameters.seed
    if parameters.stop:
        request["stop"] = list(parameters.stop)
    return request


def _messages(message: content_pb2.Message, numbers: Iterable[int]) -> Iterable[dict[str, Any]]:
    """Yields a message as OpenAI's: results of tools are messages of their own there, before the rest."""
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        match part.WhichOneof("kind"):
            case "tool_result":
                result = part.tool_result
                text = part_text.result(result)
                if result.is_error:  # This API has no field for it.
                    text = f"Error: {text}"
                yield {"role": "tool", "tool_call_id": result.call_id, "content": text}
            case "tool_call":
                call = part.tool_call
                function = {"name": call.name, "arguments": part_text.dump(call.arguments)}
                calls.append({"id": call.call_id, "type": "function", "function": function})
            case "image" if message.role != content_pb2.ROLE_USER:
                raise unsupported(_NAME, "images outside of user messages")
            case "image":
                content.append({"type": "image_url", "image_url": {"url": _image_url(part.image)}})
            case "text":
                content.append({"type": "text", "text": part.text.text})
            case "passage":
                content.append({"type": "text", "text": part_text.passage(part.passage, next(iter(numbers)))})
            case _:  # Reasoning, which this API does not take back.
                pass
    if content or calls:
        role = _ROLES.get(message.role, "user")  # What stands beside a tool's result is the caller's.
        sent: dict[str, Any] = {"role": role, "content": _content(content)}
        if calls:
            sent["tool_calls"] = calls
        yield sent


def _content(content: list[dict[str, Any]]) -> str | list[dict[str, Any]] | None:
    """Returns text as one string, which every server takes, unless a picture needs the longer form."""
    if any(item["type"] != "text" for item in content):
        return content
    return "\n\n".join(item["text"] for item in content) or None


def _image_url(image: content_pb2.Image) -> str:
    if image.WhichOneof("source") == "uri":
        return image.uri
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _code(error: Any) -> str:
    return str(error.code or error.type or "")


def _message(error: Any) -> str:
    match error.body:
        case {"message": str(message)}:
            return message
        case _:
            return str(error.message)
