"""The Gemini API, through Google's own SDK.

A request's passages are sent as delimited text, and leading system messages as the system instruction. Proof of
thoughts is sent back with the part that it came with. Google caches the beginnings of requests by itself.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, count, takewhile
from typing import TYPE_CHECKING, Any, Literal

from agentshell import tokens
from agentshell.provider.adapters import failure, part_text
from agentshell.provider.adapters.adapter import Access, Deltas, no_model, unsupported
from agentshell.provider.adapters.answer import Answer
from agentshell.provider.adapters.failure import Failure, Kind
from agentshell.provider.adapters.sdk import Sdk
from agentshell.provider.adapters.streaming import ask, converse
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from agentshell.provider.adapters.http import Http

_MODEL = "gemini-3.8-flash"
_EMBEDDING_MODEL = "gemini-embedding-2"
_API_VERSION = "v1beta"
_MODEL_PATH = re.compile(r"(?:(?:models|tunedModels)/)?\w[\w.-]*")

_FINISH: Mapping[str, pb.FinishReason.ValueType] = {
    "STOP": pb.FINISH_REASON_STOP,
    "MAX_TOKENS": pb.FINISH_REASON_LENGTH,
    "CONTINUATION": pb.FINISH_REASON_LENGTH,
    "SAFETY": pb.FINISH_REASON_CONTENT_FILTER,
    "RECITATION": pb.FINISH_REASON_CONTENT_FILTER,
    "LANGUAGE": pb.FINISH_REASON_CONTENT_FILTER,
    "BLOCKLIST": pb.FINISH_REASON_CONTENT_FILTER,
    "PROHIBITED_CONTENT": pb.FINISH_REASON_CONTENT_FILTER,
    "SPII": pb.FINISH_REASON_CONTENT_FILTER,
    "ESCALATION": pb.FINISH_REASON_CONTENT_FILTER,
    "MODEL_ARMOR": pb.FINISH_REASON_CONTENT_FILTER,
}
_NUMBERS: tuple[tuple[str, Literal["max_output_tokens", "temperature", "top_p", "seed"]], ...] = (
    ("maxOutputTokens", "max_output_tokens"),
    ("temperature", "temperature"),
    ("topP", "top_p"),
    ("seed", "seed"),
)
_MODES = {pb.ToolChoice.MODE_NONE: "NONE", pb.ToolChoice.MODE_REQUIRED: "ANY"}
_EFFORT = "REASONING_EFFORT_"
# Gemini 2.5 takes no level but a limit on thinking tokens: these are the ones that Google maps OpenAI's efforts to.
_BUDGETS: Mapping[pb.ReasoningEffort.ValueType, int] = {
    pb.REASONING_EFFORT_MINIMAL: 1024,
    pb.REASONING_EFFORT_LOW: 1024,
    pb.REASONING_EFFORT_MEDIUM: 8192,
    pb.REASONING_EFFORT_HIGH: 24_576,
}
# Prefixes of `Reasoning.signature`, so that another vendor's proof is never sent to this one: for the proof of a
# thought itself, or of the part after it.
_THOUGHT = b"gemini/thought/"
_PART = b"gemini/part/"
# From Gemini 3 on, a message's first call needs a proof. For calls by another vendor's model, Google defines this one.
_NO_PROOF = "skip_thought_signature_validator"
_NEEDS_NO_PROOF = ("gemini-1", "gemini-2", "gemma")


class GeminiAdapter:
    """Generates, embeds and counts tokens. Has no moderation."""

    abilities = frozenset(
        {
            pb.ABILITY_TEMPERATURE,
            pb.ABILITY_TOP_P,
            pb.ABILITY_STOP,
            pb.ABILITY_SEED,
            pb.ABILITY_REASONING_EFFORT,
            pb.ABILITY_TOOLS,
            pb.ABILITY_TOOL_CHOICE,
            pb.ABILITY_IMAGES,
            pb.ABILITY_IMAGE_LINKS,
            pb.ABILITY_OUTPUT_SCHEMA,
            pb.ABILITY_PROMPT_CACHE,
            pb.ABILITY_EMBEDDINGS,
            pb.ABILITY_DIMENSION,
            pb.ABILITY_TOKEN_COUNT,
        }
    )

    def __init__(self, access: Access) -> None:
        self.default_model = access.model or _MODEL
        self._provider = access.provider
        self._base_url = access.base_url or None
        self._sdk: Sdk[tuple[Any, Http]] = Sdk(access, "google.genai", self._connect, _explain)

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields deltas and the whole answer."""
        return converse(self._sdk, partial(self._stream, generation, model), _Growth(self._provider, model), model)

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns one vector per text. The usage is an estimate if Google does not report it."""
        model = model or _EMBEDDING_MODEL
        path = self._path(model)
        size = {"outputDimensionality": dimension} if dimension else {}
        requests = [{"model": path, "content": {"parts": [{"text": text}]}, **size} for text in texts]
        answer = await self._ask(f"{path}:batchEmbedContents", {"requests": requests}, model)
        with self._sdk.failing(model):
            embeddings = [pb.Embedding(values=embedding["values"]) for embedding in answer["embeddings"]]
            if len(embeddings) != len(texts):
                raise ValueError(f"{len(embeddings)} vectors for {len(texts)} texts")
            read = answer.get("usageMetadata", {}).get("promptTokenCount")
            usage = content_pb2.Usage(input_tokens=read or sum(map(tokens.estimate, texts)), estimated=not read)
            return pb.EmbedResponse(embeddings=embeddings, usage=usage, provider=self._provider, model=model)

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(self._provider, "moderation")

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns Google's own count."""
        path = self._path(model)
        request = {"model": path, **_request(generation, model, self._provider)}
        answer = await self._ask(f"{path}:countTokens", {"generateContentRequest": request}, model)
        with self._sdk.failing(model):
            return pb.CountTokensResponse(input_tokens=answer["totalTokens"], provider=self._provider, model=model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._sdk.close()

    async def _ask(self, path: str, request: dict[str, Any], model: str) -> dict[str, Any]:
        with self._sdk.failing(model):
            api, _ = await self._sdk.open()
            (text,) = (await api._async_request(api._build_request("post", path, request))).response_stream
            return json.loads(text)

    def _path(self, model: str) -> str:
        """Returns the model's path in a URL. Raises MODEL_NOT_FOUND for a name that no model can have."""
        if not _MODEL_PATH.fullmatch(model):
            raise no_model(self._provider, model)
        return model if "/" in model else f"models/{model}"

    async def _stream(self, generation: pb.Generation, model: str) -> ClientResponse:
        path = f"{self._path(model)}:streamGenerateContent?alt=sse"
        body = _request(generation, model, self._provider)
        api, http = await self._sdk.open()
        asked = api._build_request("post", path, body)
        return await ask(http, asked.url, asked.headers.items(), asked.data)

    def _connect(self, key: str, http: Http) -> tuple[Any, Http]:
        """Returns the SDK client's inner client: the SDK's own request types cannot count all of a request's tokens."""
        from google.genai import Client
        from google.genai.types import HttpOptions

        options = HttpOptions(base_url=self._base_url, api_version=_API_VERSION, httpx_async_client=http.client())
        client = Client(api_key=key, vertexai=False, http_options=options)
        return client._api_client, http  # pyright: ignore[reportPrivateUsage] - see above


class _Growth:
    """Reads the chunks of one answer."""

    def __init__(self, provider: str, model: str) -> None:
        self.failed: Failure | None = None
        self.answer = Answer(provider)
        self._reason = ""
        self._model = model
        self._calls = 0
        self._usage: content_pb2.Usage | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its end has come."""
        return self._reason != ""

    def read(self, event: Mapping[str, Any]) -> None:
        """Adds a chunk."""
        self._model = event.get("modelVersion") or self._model
        for candidate in event.get("candidates", ()):
            for part in candidate.get("content", {}).get("parts", ()):
                self._grow(part)
            if reason := candidate.get("finishReason"):
                self._reason = reason
                if reason not in _FINISH:
                    self.failed = Failure(Kind.ANSWERED, 0, reason, candidate.get("finishMessage", ""))
        if event.get("promptFeedback", {}).get("blockReason"):  # Then there is no answer.
            self._reason = self._reason or "SAFETY"
        if counts := event.get("usageMetadata"):
            usage = _usage(counts)
            if usage != self._usage:
                self._usage = usage
                self.answer.used(usage)
        if "error" in event:
            self.failed = failure.answered(0, {}, event)

    def finish(self) -> pb.GenerateResponse:
        """Returns the whole answer."""
        reason = _FINISH[self._reason]
        if reason == pb.FINISH_REASON_STOP and self._calls:
            reason = pb.FINISH_REASON_TOOL_CALLS
        return self.answer.finish(self._model, reason, self._usage)

    def _grow(self, part: Mapping[str, Any]) -> None:
        proof = part.get("thoughtSignature", "").encode()
        if part.get("thought"):
            if part.get("text"):
                self.answer.reasoning(part["text"])
            if proof:
                self.answer.sign(_THOUGHT + proof)
            return
        if proof:
            self.answer.sign(_PART + proof)
        if call := part.get("functionCall"):
            call_id = call.get("id") or f"call-{uuid.uuid4().hex}"
            arguments = json.dumps(call.get("args") or {}, ensure_ascii=False)
            self.answer.call(self._calls, call_id, call["name"], arguments)
            self._calls += 1
        elif part.get("text"):
            self.answer.text(part["text"])


def _usage(counts: Mapping[str, int | Any]) -> content_pb2.Usage:
    thoughts = counts.get("thoughtsTokenCount", 0)
    read = {detail["modality"]: detail.get("tokenCount", 0) for detail in counts.get("promptTokensDetails", ())}
    written = {detail["modality"]: detail.get("tokenCount", 0) for detail in counts.get("candidatesTokensDetails", ())}
    return content_pb2.Usage(
        input_tokens=counts.get("promptTokenCount", 0) + counts.get("toolUsePromptTokenCount", 0),
        output_tokens=counts.get("candidatesTokenCount", 0) + thoughts,  # Google counts these separately.
        cached_input_tokens=counts.get("cachedContentTokenCount", 0),
        reasoning_tokens=thoughts,
        image_input_tokens=read.get("IMAGE", 0),
        audio_input_tokens=read.get("AUDIO", 0),
        audio_output_tokens=written.get("AUDIO", 0),
    )


def _explain(error: Exception) -> Failure | None:
    from google.genai import errors

    if not isinstance(error, errors.APIError):
        return None
    failed: Any = error  # Its response may be from any of four libraries.
    return failure.answered(failed.code, failed.response.headers, failed.details)


def _request(generation: pb.Generation, model: str, provider: str) -> dict[str, Any]:
    name = model.rpartition("/")[2]
    numbers = count(1)  # Passages are numbered across the whole request, for citing.
    messages = list(generation.messages)
    first = sum(1 for _ in takewhile(lambda message: message.role == content_pb2.ROLE_SYSTEM, messages))
    system = list(chain.from_iterable(_parts(message, {}, numbers, provider) for message in messages[:first]))
    request: dict[str, Any] = {"contents": _contents(messages[first:], numbers, name, provider)}
    if system:
        request["systemInstruction"] = {"parts": system}
    if generation.tools:
        request["tools"] = [{"functionDeclarations": [_tool(tool) for tool in generation.tools]}]
        if generation.HasField("tool_choice"):
            request["toolConfig"] = {"functionCallingConfig": _tool_choice(generation.tool_choice, provider)}
    if config := _config(generation, name):
        request["generationConfig"] = config
    return request


def _tool(tool: pb.ToolDefinition) -> dict[str, Any]:
    schema = {"parametersJsonSchema": part_text.tool_schema(tool.input_schema)} if tool.input_schema.fields else {}
    return {"name": tool.name, "description": tool.description, **schema}


def _tool_choice(choice: pb.ToolChoice, provider: str) -> dict[str, Any]:
    if choice.one_at_a_time:
        raise unsupported(provider, "one tool at a time")
    names = {"allowedFunctionNames": [choice.name]} if choice.name else {}
    return {"mode": _MODES.get(choice.mode, "AUTO"), **names}


def _config(generation: pb.Generation, model: str) -> dict[str, Any]:
    parameters = generation.parameters
    config: dict[str, Any] = {}
    for name, field in _NUMBERS:
        if parameters.HasField(field):
            config[name] = getattr(parameters, field)
    if parameters.stop:
        config["stopSequences"] = list(parameters.stop)
    if parameters.reasoning_effort:
        config["thinkingConfig"] = _thinking(parameters.reasoning_effort, model)
    if generation.HasField("output_schema"):
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = part_text.schema(generation.output_schema)
    return config


def _thinking(effort: pb.ReasoningEffort.ValueType, model: str) -> dict[str, Any]:
    if effort == pb.REASONING_EFFORT_NONE:
        return {"thinkingBudget": 0}  # A model that always thinks refuses.
    if model.startswith("gemini-2"):
        return {"thinkingBudget": _BUDGETS[effort], "includeThoughts": True}
    return {"thinkingLevel": pb.ReasoningEffort.Name(effort).removeprefix(_EFFORT), "includeThoughts": True}


def _contents(
    messages: Sequence[content_pb2.Message], numbers: Iterable[int], model: str, provider: str
) -> list[dict[str, Any]]:
    calls = (part.tool_call for message in messages for part in message.parts if part.HasField("tool_call"))
    names = {call.call_id: call.name for call in calls}
    contents: list[dict[str, Any]] = []
    before = content_pb2.ROLE_UNSPECIFIED
    for message in messages:
        if message.role == content_pb2.ROLE_SYSTEM:
            raise unsupported(provider, "system messages after others")
        parts = list(_parts(message, names, numbers, provider))
        is_model = message.role == content_pb2.ROLE_ASSISTANT
        if is_model and not model.startswith(_NEEDS_NO_PROOF):
            _prove(parts)
        if contents and message.role == before == content_pb2.ROLE_TOOL:  # Results for one message's calls.
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": "model" if is_model else "user", "parts": parts})
        before = message.role
    return contents


def _prove(parts: Sequence[dict[str, Any]]) -> None:
    """Marks the first call as having no proof, if it has none."""
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", _NO_PROOF)


def _parts(
    message: content_pb2.Message, names: Mapping[str, str], numbers: Iterable[int], provider: str
) -> Iterable[dict[str, Any]]:
    """Yields a message's parts, each proof with the part that follows it, or alone at the end."""
    proof = ""
    for part in message.parts:
        if part.HasField("reasoning"):
            reasoning = part.reasoning
            if reasoning.signature.startswith(_THOUGHT):
                signature = reasoning.signature.removeprefix(_THOUGHT).decode()
                yield {"text": reasoning.text, "thought": True, "thoughtSignature": signature}
            elif reasoning.signature.startswith(_PART):
                proof = reasoning.signature.removeprefix(_PART).decode()
        elif sent := _part(part, message.role, names, numbers, provider):
            yield {**sent, "thoughtSignature": proof} if proof else sent
            proof = ""
    if proof:
        yield {"text": "", "thoughtSignature": proof}


def _part(
    part: content_pb2.Part,
    role: content_pb2.Role.ValueType,
    names: Mapping[str, str],
    numbers: Iterable[int],
    provider: str,
) -> dict[str, Any]:
    match part.WhichOneof("kind"):
        case "text" if part.text.text:
            return {"text": part.text.text}
        case "passage":
            return {"text": part_text.passage(part.passage, next(iter(numbers)))}
        case "image" if role != content_pb2.ROLE_USER:
            raise unsupported(provider, "images outside of user messages")
        case "image" if part.image.HasField("uri"):
            return {"fileData": {"mimeType": part.image.media_type, "fileUri": part.image.uri}}
        case "image":
            data = base64.b64encode(part.image.data).decode()
            return {"inlineData": {"mimeType": part.image.media_type, "data": data}}
        case "tool_call":
            call = part.tool_call
            return {"functionCall": {"id": call.call_id, "name": call.name, "args": part_text.schema(call.arguments)}}
        case "tool_result":
            result = part.tool_result
            response = {"error" if result.is_error else "output": json.loads(part_text.dump(result.output))}
            name = names.get(result.call_id, "")  # Google refuses a result without its call.
            return {"functionResponse": {"id": result.call_id, "name": name, "response": response}}
        case _:
            return {}
