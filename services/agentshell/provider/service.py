"""ProviderService: every model behind one contract."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeAlias

import grpc.aio

from agentshell import tokens
from agentshell.db.database import Database
from agentshell.mesh import call, errors, paging
from agentshell.mesh.config import ProviderConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import routing, token_bound
from agentshell.provider.alarm import Alarm
from agentshell.provider.answers import Answers
from agentshell.provider.budget import Budgets
from agentshell.provider.generations import Ask, Generations, deadline
from agentshell.provider.ledger import Ledger, Most
from agentshell.provider.metering import Spent
from agentshell.provider.output_schema import OutputSchema
from agentshell.provider.pricing import Prices
from agentshell.provider.response_cache import ResponseCache
from agentshell.provider.routing import Candidate
from agentshell.provider.runs import Request, Runs
from agentshell.provider.usage import Usages
from agentshell.provider.vendors import Vendors
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1 import provider_service_pb2_grpc

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Generate: TypeAlias = pb.GenerateRequest | pb.StreamGenerateRequest


class ProviderService(provider_service_pb2_grpc.ProviderServiceServicer):
    """Finds the models that a request leads to, and asks them within the caller's deadline and budget."""

    def __init__(
        self,
        config: ProviderConfig,
        vendors: Vendors,
        prices: Prices,
        ledger: Ledger,
        generations: Generations,
        usages: Usages,
    ) -> None:
        self._config = config
        self._vendors = vendors
        self._prices = prices
        self._ledger = ledger
        self._generations = generations
        self._usages = usages
        self._runs = Runs()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: ProviderConfig, environment: Mapping[str, str], database: Database
    ) -> AsyncGenerator[ProviderService]:
        """Opens the service and all its parts for the block, with its schema migrated. Raises CONFIG_INVALID."""
        prices = Prices.load(config.prices_file)
        vendors = Vendors(config, environment, prices)
        await database.migrate("provider", "agentshell.provider.migrations")
        answers, budgets, usages = Answers(database), Budgets(config, database), Usages(database)
        ledger = Ledger(vendors, prices, budgets, usages)
        generations = Generations(vendors, ledger, answers, ResponseCache(database), config.default_max_output_tokens)
        service = cls(config, vendors, prices, ledger, generations, usages)
        async with AsyncExitStack() as stack:
            for close in (vendors.close, answers.close, usages.close, budgets.close, service.close):
                stack.push_async_callback(close)
            await budgets.open()
            yield service

    async def close(self) -> None:
        """Cancels all runs."""
        await self._runs.close()

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> pb.GenerateResponse:
        """Returns the whole answer.

        The vendor is asked for a stream here too: otherwise nobody would know what an answer that was cut off cost, or
        could tell a vendor that thinks for long from a silent one.
        """
        ask = self._asked(request)
        with _in_time():
            return await self._runs.answer(ask.request, partial(self._generations.answer, ask))

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: _Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse]:
        """Streams deltas, together those that arrived since the last response was sent, or just after it."""
        ask, finish = self._asked(request), None
        with _in_time(), self._runs.follow(ask.request, partial(self._generations.answer, ask)) as run:
            while finish is None:
                deltas, finish = await run.read()
                yield pb.StreamGenerateResponse(deltas=deltas, finish=finish)

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        """Returns one vector per text."""
        purpose, candidates = request.purpose, self._candidates(request.purpose, request.provider, request.model)
        spent: list[Spent] = []
        with _in_time():
            reservation = None
            if limits := self._ledger.limits(purpose):
                most = Most(sum(map(tokens.estimate, request.texts)), token_bound.of_texts(request.texts), 0)
                reservation = await self._ledger.reserve(limits, candidates, most)
            try:
                return await self._vendors.embed(candidates, request, deadline(), spent)
            finally:
                await self._ledger.settle(purpose, reservation, spent)

    async def Moderate(self, request: pb.ModerateRequest, context: _Context) -> pb.ModerateResponse:
        """Returns one verdict per text."""
        candidates = self._candidates(pb.Purpose(), request.provider, request.model)
        with _in_time():
            return await self._vendors.moderate(candidates, request, deadline())

    async def CountTokens(self, request: pb.CountTokensRequest, context: _Context) -> pb.CountTokensResponse:
        """Returns the count by the first model that the request leads to."""
        generation = request.generation
        candidates = self._candidates(pb.Purpose(), generation.provider, generation.model)
        with _in_time():
            return await self._vendors.count_tokens(candidates[:1], generation, deadline())

    async def ListModels(self, request: pb.ListModelsRequest, context: _Context) -> pb.ListModelsResponse:
        """Lists priced models and defaults, ordered by provider and model."""
        providers = [request.provider] if request.provider else self._vendors.providers()
        models = [model for provider in providers for model in self._models(provider)]
        return _page(sorted(models, key=_key), request)

    async def GetUsage(self, request: pb.GetUsageRequest, context: _Context) -> pb.GetUsageResponse:
        """Returns what the tenant used."""
        return await self._usages.rows(call.tenant(), request)

    def _asked(self, request: _Generate) -> Ask:
        generation, schema = request.generation, None
        if generation.HasField("output_schema"):
            try:
                schema = OutputSchema(generation)
            except ValueError as error:
                raise errors.invalid("generation.output_schema", f"is not a JSON Schema: {error}") from None
        digest = (
            hashlib.sha256(generation.SerializeToString(deterministic=True)).digest() if request.request_id else b""
        )
        return Ask(
            Request(call.tenant(), request.request_id, digest),
            generation,
            request.purpose,
            self._vendors.named(self._candidates(request.purpose, generation.provider, generation.model)),
            schema,
            request.cache_ttl.ToTimedelta() if request.HasField("cache_ttl") else None,
        )

    def _candidates(self, purpose: pb.Purpose, provider: str, model: str) -> tuple[Candidate, ...]:
        try:
            return routing.candidates(self._config, call.tenant(), purpose.personality_id, provider, model)
        except ValueError as error:
            raise errors.invalid("generation.model", str(error)) from None

    def _models(self, provider: str) -> list[pb.Model]:
        can = sorted(self._vendors.abilities(provider))
        models = self._prices.models(self._vendors.prices_name(provider), self._vendors.default_model(provider))
        for model in models:
            model.provider = provider
            model.abilities.extend(can)
            model.aliases.extend(routing.aliases_of(self._config, call.tenant(), provider, model.model))
        return models


@contextmanager
def _in_time() -> Generator[None]:
    """Ends the block with PROVIDER_TIMEOUT when the caller's time is up."""
    alarm = Alarm(deadline())
    try:
        with alarm:
            yield
    except TimeoutError as error:
        raise AgentShellError(
            error_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
            "no model answered before the caller's deadline: allow more time, or ask for less",
        ) from error
    finally:
        alarm.stop()


def _page(models: Sequence[pb.Model], request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    """Returns a page. The token is the last model of the previous page, so that a new model shifts nothing."""
    size = paging.page_size(request.page_size, default=100, most=1000)
    if after := paging.decode(request, request.page_token, str, str):
        models = [model for model in models if _key(model) > tuple(after)]
    page = models[:size]
    token = paging.encode(request, *_key(page[-1])) if len(models) > size else ""
    return pb.ListModelsResponse(models=page, next_page_token=token)


def _key(model: pb.Model) -> tuple[str, str]:
    return (model.provider, model.model)
