"""ProviderService: finds the adapter, calls it within the caller's deadline, and remembers what it answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc.aio

from agentshell.mesh import call, paging
from agentshell.mesh.config import ProviderConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import metrics
from agentshell.provider.adapters import answer
from agentshell.provider.adapters.adapter import Adapter
from agentshell.provider.answers import Answers
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1 import provider_service_pb2_grpc

# A call without a deadline of its own still ends.
MAX_CALL_SECONDS = 600.0
# Deltas that wait for a slow reader; the vendor is read no further meanwhile.
MAX_WAITING_DELTAS = 64

_T = TypeVar("_T")
_Send = Callable[[pb.GenerationDelta], Awaitable[None]]
_Context = grpc.aio.ServicerContext[Any, Any]


class ProviderService(provider_service_pb2_grpc.ProviderServiceServicer):
    """Serves the adapters given to it, by their names."""

    def __init__(self, config: ProviderConfig, adapters: Mapping[str, Adapter], answers: Answers) -> None:
        self._config = config
        self._adapters = adapters
        self._answers = answers

    async def open(self) -> None:
        """Makes the schema, or brings it up to date."""
        await self._answers.open()

    async def close(self) -> None:
        """Lets go of all connections to vendors."""
        for adapter in self._adapters.values():
            await adapter.close()

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> pb.GenerateResponse:
        """Returns the stream folded: both are one call to the vendor."""
        return await self._generate(request.generation, request.request_id, _drop)

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: _Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse]:
        """Streams deltas; those that came since the last response was sent go together."""
        grown: asyncio.Queue[pb.GenerationDelta | pb.GenerateResponse | Exception] = asyncio.Queue(MAX_WAITING_DELTAS)

        async def read() -> None:
            try:
                await grown.put(await self._generate(request.generation, request.request_id, grown.put))
            except Exception as error:
                await grown.put(error)

        reader = asyncio.create_task(read())
        try:
            while True:
                items = [await grown.get()]
                while not grown.empty():
                    items.append(grown.get_nowait())
                last = items.pop() if not isinstance(items[-1], pb.GenerationDelta) else None
                response = pb.StreamGenerateResponse(deltas=[i for i in items if isinstance(i, pb.GenerationDelta)])
                if isinstance(last, pb.GenerateResponse):
                    response.finish.CopyFrom(last)
                if response.deltas or response.HasField("finish"):
                    yield response
                if isinstance(last, Exception):
                    raise last
                if last is not None:
                    return
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        """Returns a vector a text."""
        adapter = self._adapter(request.provider)
        with metrics.measure("embeddings", adapter.name, request.model) as measurement:
            response = await _bounded(adapter.embed(request.texts, request.model), adapter.name)
            measurement.used(response.usage, response.model)
            return response

    async def Moderate(self, request: pb.ModerateRequest, context: _Context) -> pb.ModerateResponse:
        """Returns a verdict a text."""
        adapter = self._adapter(request.provider)
        with metrics.measure("moderation", adapter.name, request.model):
            return await _bounded(adapter.moderate(request.texts, request.model), adapter.name)

    async def CountTokens(self, request: pb.CountTokensRequest, context: _Context) -> pb.CountTokensResponse:
        """Returns the vendor's count, or an estimate that says so."""
        adapter = self._adapter(request.generation.provider)
        model = request.generation.model or adapter.default_model
        return await _bounded(adapter.count_tokens(request.generation, model), adapter.name)

    async def ListModels(self, request: pb.ListModelsRequest, context: _Context) -> pb.ListModelsResponse:
        """Lists what the adapters know, by provider and model."""
        adapters = [self._adapter(request.provider)] if request.provider else list(self._adapters.values())
        models = [model for adapter in adapters for model in adapter.list_models()]
        return _page(sorted(models, key=_key), request)

    async def _generate(self, generation: pb.Generation, request_id: str, send: _Send) -> pb.GenerateResponse:
        """Sends deltas and returns the whole answer, which is kept by then if the request has an id."""
        adapter = self._adapter(generation.provider)
        model = generation.model or adapter.default_model
        tenant_id = call.tenant()
        if request_id:
            first = await self._answers.find(tenant_id, request_id, generation)
            if first is not None:
                metrics.REPLAYS.inc()
                for delta in answer.deltas(first):
                    await send(delta)
                return first
        response = await _bounded(_ask(adapter, model, generation, send), adapter.name)
        if request_id:
            response = await self._answers.keep(tenant_id, request_id, generation, response)
        return response

    def _adapter(self, provider: str) -> Adapter:
        name = provider or self._config.default
        adapter = self._adapters.get(name)
        if adapter is None:
            configured = ", ".join(sorted(self._adapters))
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_NOT_FOUND,
                f"no provider {name!r} is configured; there are: {configured}",
                metadata={"provider": name, "configured": configured},
            )
        return adapter


async def _ask(adapter: Adapter, model: str, generation: pb.Generation, send: _Send) -> pb.GenerateResponse:
    with metrics.measure("chat", adapter.name, model) as measurement:
        async with aclosing(adapter.stream(generation, model)) as items:
            async for item in items:
                if isinstance(item, pb.GenerateResponse):
                    measurement.used(item.usage, item.model)
                    return item
                measurement.delta()
                await send(item)
        raise RuntimeError(f"adapter {adapter.name} ended its stream without an answer")


async def _bounded(work: Awaitable[_T], provider: str) -> _T:
    """Ends the call to the vendor when the caller's time is up."""
    remaining = call.current().remaining()
    try:
        async with asyncio.timeout(MAX_CALL_SECONDS if remaining is None else remaining):
            return await work
    except TimeoutError as error:
        raise AgentShellError(
            error_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
            f"provider {provider} did not answer before the caller's deadline: allow more time, or ask for less",
            metadata={"provider": provider},
        ) from error


async def _drop(delta: pb.GenerationDelta) -> None:
    """Keeps nothing: the whole answer has it all."""


def _page(models: Sequence[pb.Model], request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    """Returns a page. Its token is the last model of the page before, so that a new model shifts nothing."""
    size = paging.page_size(request.page_size, default=100, most=1000)
    if after := paging.decode(request, request.page_token, str, str):
        models = [model for model in models if _key(model) > tuple(after)]
    page = models[:size]
    token = paging.encode(request, *_key(page[-1])) if len(models) > size else ""
    return pb.ListModelsResponse(models=page, next_page_token=token)


def _key(model: pb.Model) -> tuple[str, str]:
    return (model.provider, model.model)
