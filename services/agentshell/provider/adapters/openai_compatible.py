"""Servers that speak OpenAI's Chat Completions: Ollama, vLLM, llama.cpp, Groq, Mistral and others, at a base URL.

Such a server may do without a key, and leave out the ids and indices of tool calls, and its usage, which is then
estimated. A server that refuses a request for usage is asked once more without that, and never for usage again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from agentshell import tokens
from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters.adapter import Access, Deltas, no_model, unsupported
from agentshell.provider.adapters.failure import Refused
from agentshell.provider.adapters.openai_api import OpenAIApi
from agentshell.provider.adapters.openai_chat import PATH, WITH_USAGE, ChatGrowth, request
from agentshell.provider.adapters.streaming import converse
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

if TYPE_CHECKING:
    from aiohttp import ClientResponse


class OpenAICompatibleAdapter:
    """Generates with Chat Completions, and embeds if the server can. Its token counts are estimates."""

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
            pb.ABILITY_EMBEDDINGS,
            pb.ABILITY_DIMENSION,
        }
    )

    def __init__(self, access: Access) -> None:
        if not access.base_url:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"provider {access.provider} speaks openai_compatible and has no base_url: set the URL of its API",
                metadata={"key": f"provider.vendors.{access.provider}.base_url", "value": "", "fix": "set it"},
            )
        self.default_model = access.model
        self._api = OpenAIApi(access, is_openai=False)
        self._asks_for_usage = True

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields deltas and the whole answer. Raises MODEL_NOT_FOUND without a model."""
        growth = ChatGrowth(generation, self._api.provider, model)
        return converse(self._api.sdk, partial(self._ask, generation, model), growth, model)

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns one vector per text. Raises MODEL_NOT_FOUND without a model: there is no default."""
        if not model:
            raise no_model(self._api.provider, model)
        return await self._api.embed(texts, model, dimension)

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(self._api.provider, "moderation")

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns an estimate: such servers' models have many kinds of tokenizer."""
        estimate = tokens.estimate_generation(generation)
        return pb.CountTokensResponse(input_tokens=estimate, estimated=True, provider=self._api.provider, model=model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._api.sdk.close()

    async def _ask(self, generation: pb.Generation, model: str) -> ClientResponse:
        if not model:
            raise no_model(self._api.provider, model)
        body = {"model": model, **request(generation, self._api.provider, "max_tokens")}
        if not self._asks_for_usage:
            return await self._api.stream(PATH, body)
        try:
            return await self._api.stream(PATH, {**body, **WITH_USAGE})
        except Refused as refused:
            # Mistral, among others, reports usage unasked and refuses the option. Nothing was generated.
            if refused.failure.status not in (400, 422) or "stream_options" not in refused.text:
                raise
            self._asks_for_usage = False
            return await self._api.stream(PATH, body)
