"""What the adapters of OpenAI's APIs share: requests, vectors, verdicts, and the forms that all of them take.

Answers are read as plain JSON: the types of OpenAI's SDK would reject what OpenAI's imitators leave out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agentshell.provider.adapters import part_text, stainless
from agentshell.provider.adapters.adapter import Access, unsupported
from agentshell.provider.adapters.sdk import Sdk
from agentshell.provider.adapters.stainless import Client
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:  # The SDK takes half a second and 40 MB to import: only a call to OpenAI pays for it.
    from aiohttp import ClientResponse
    from openai import AsyncOpenAI
    from openai._types import RequestOptions

    from agentshell.provider.adapters.http import Http

MODEL = "gpt-6.1-sol"
_NO_KEY = "none"  # The SDK demands a key, or else takes one from the environment.
_EMBEDDING_MODEL = "text-embedding-3-small"
_MODERATION_MODEL = "omni-moderation-latest"

EFFORTS: Mapping[pb.ReasoningEffort.ValueType, str] = {
    pb.REASONING_EFFORT_NONE: "none",
    pb.REASONING_EFFORT_MINIMAL: "minimal",
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}


class OpenAIApi:
    """One endpoint of OpenAI, or of a server that speaks its protocol (`is_openai`: False)."""

    def __init__(self, access: Access, *, is_openai: bool = True) -> None:
        self.provider = access.provider
        self._is_openai = is_openai
        self._base_url = access.base_url or None
        self.sdk = Sdk(access, "openai", self._connect, stainless.explain("openai"))

    async def stream(self, path: str, body: Mapping[str, Any]) -> ClientResponse:
        """Returns a streamed answer, which the caller reads and releases."""
        return await (await self.sdk.open()).stream(path, body)

    async def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """Returns an answer that is not streamed."""
        client = (await self.sdk.open()).sdk
        return await client.post(path, cast_to=object, body=body, options=_options(client))

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns one vector per text; usage is absent if the vendor does not report it."""
        model = model or _EMBEDDING_MODEL
        body: dict[str, Any] = {"input": list(texts), "model": model, "encoding_format": "float"}
        if dimension:
            body["dimensions"] = dimension
        with self.sdk.failing(model):
            answer = await self.ask("/embeddings", body)
            vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: number(item, "index"))]
            _expect(len(vectors), len(texts))
            usage = member(answer, "usage")
            return pb.EmbedResponse(
                embeddings=[pb.Embedding(values=vector) for vector in vectors],
                usage=content_pb2.Usage(input_tokens=number(usage, "prompt_tokens")) if usage else None,
                provider=self.provider,
                model=answer.get("model") or model,
            )

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns one verdict per text."""
        model = model or _MODERATION_MODEL
        with self.sdk.failing(model):
            answer = await self.ask("/moderations", {"input": list(texts), "model": model})
            verdicts = [
                pb.Verdict(flagged=result["flagged"], scores=result["category_scores"]) for result in answer["results"]
            ]
            _expect(len(verdicts), len(texts))
            return pb.ModerateResponse(verdicts=verdicts, provider=self.provider, model=answer["model"])

    def _connect(self, key: str, http: Http) -> Client[AsyncOpenAI]:
        from openai import AsyncOpenAI

        api_key, sending = key or _NO_KEY, http.client()
        client = AsyncOpenAI(api_key=api_key, base_url=self._base_url, max_retries=0, http_client=sending)
        if not self._is_openai:  # Nobody else is told the account that the SDK finds in the environment.
            client.organization = client.project = None
        return Client(client, http, has_key=bool(key))


def _options(client: AsyncOpenAI) -> RequestOptions:
    """Returns the options that send the key, or none if there is no key."""
    from openai import Omit

    if client.api_key == _NO_KEY:
        return {"headers": {"Authorization": Omit()}}
    return {"security": {"bearer_auth": True}}


def member(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a member of a JSON object that is itself an object; an empty one if it is missing or null."""
    return found.get(name) or {}


def number(found: Mapping[str, Any], name: str) -> int:
    """Returns a member of a JSON object that is a number; 0 if it is missing or null."""
    return found.get(name) or 0


def parameters_of(tool: pb.ToolDefinition) -> Mapping[str, Any]:
    """Returns the schema of a tool's arguments, which the API requires."""
    return part_text.tool_schema(tool.input_schema) or {"type": "object", "properties": {}}


def image_url(image: content_pb2.Image) -> str:
    """Returns an image's URL; an image in the request itself becomes a data URL."""
    if image.WhichOneof("source") == "uri":
        return image.uri
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def cache(prompt_cache: pb.PromptCache, provider: str, lifetimes: Mapping[str, timedelta]) -> dict[str, Any]:
    """Returns a request's cache hints. OpenAI caches the beginnings of requests by itself.

    `lifetimes`: those that the API offers, shortest first; the first that is long enough is requested.
    """
    hints: dict[str, Any] = {}
    if prompt_cache.key:
        hints["prompt_cache_key"] = prompt_cache.key
    if prompt_cache.HasField("ttl"):
        wanted = prompt_cache.ttl.ToTimedelta()
        name = next((name for name, lifetime in lifetimes.items() if lifetime >= wanted), None)
        if name is None:
            raise unsupported(provider, f"prompt caches of more than {[*lifetimes][-1]}")
        hints["prompt_cache_options"] = {"ttl": name}
    return hints


def _expect(count: int, texts: int) -> None:
    if count != texts:
        raise ValueError(f"{count} results for {texts} texts")
