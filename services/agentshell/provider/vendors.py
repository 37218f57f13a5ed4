"""All vendors: asks a call's models in order, at their endpoints, until one answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message as AnyMessage

from agentshell.mesh.config import ProviderConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import abilities, adapters, metrics, vendor
from agentshell.provider.adapters.adapter import Adapter, Deltas, Kind, Tell, tell_nobody, unsupported
from agentshell.provider.alarm import Alarm
from agentshell.provider.attempt import Attempt, Start, Work, failure_of
from agentshell.provider.course import Stage, Try, course
from agentshell.provider.metering import Spent
from agentshell.provider.pricing import Prices
from agentshell.provider.routing import Candidate
from agentshell.provider.vendor import Vendor
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

# The vendors that need no configuration, each with the adapter of the same name.
BUILT_IN = ("local", "openai", "openai_chat", "anthropic", "gemini")
_OTHER_MODEL = "other"
_NO_GENERATION = pb.Generation()

T = TypeVar("T", bound=AnyMessage)
_Missing = Callable[[frozenset[pb.Ability.ValueType]], list[str]]


class Vendors:
    """Every vendor by the name that requests call `provider`.

    All its calls take a `deadline` on the clock of `time.monotonic`, and end by it with PROVIDER_TIMEOUT. They retry,
    at other endpoints too, and then try the next candidate, as `course` decides, and raise the last failure, whose
    `retry_delay` says when to try again. Each attempt at a vendor is appended to `spent` before the caller learns its
    outcome.
    """

    def __init__(self, config: ProviderConfig, environment: Mapping[str, str], prices: Prices) -> None:
        """Raises CONFIG_INVALID if a vendor's adapter is unknown, or an alias leads to a provider that does not exist.

        `environment` holds the keys, and is read at each call.
        """
        self._config = config
        self._prices = prices
        self._vendors = {name: vendor.build(name, config, kind, environment) for name, kind in kinds(config).items()}
        routes = _routes(config)
        for key, route in routes.items():
            self._check_route(key, route)
        self._known_models = {name for route in routes.values() for name in route}
        for each in self._vendors.values():
            self._known_models.add(f"{each.name}/{each.default_model}")
            for endpoint in each.endpoints:
                metrics.watch(endpoint)

    async def close(self) -> None:
        """Closes all connections."""
        for each in self._vendors.values():
            for endpoint in each.endpoints:
                await endpoint.adapter.close()

    def providers(self) -> list[str]:
        """Returns the providers' names, sorted."""
        return sorted(self._vendors)

    def find(self, provider: str) -> Vendor:
        """Returns a vendor. Raises PROVIDER_NOT_FOUND."""
        found = self._vendors.get(provider)
        if found is None:
            configured = ", ".join(self.providers())
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_NOT_FOUND,
                f"no provider {provider!r} is configured; the configured ones are: {configured}",
                metadata={"provider": provider, "configured": configured},
            )
        return found

    def abilities(self, provider: str) -> frozenset[pb.Ability.ValueType]:
        """Returns what a provider can do beyond answering text with text."""
        return self.find(provider).abilities

    def default_model(self, provider: str) -> str:
        """Returns the model that generates if a request names none."""
        return self.find(provider).default_model

    def named(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Returns candidates to generate, with each missing model filled in. Raises PROVIDER_NOT_FOUND."""
        return tuple(Candidate(provider, model or self.default_model(provider)) for provider, model in candidates)

    def prices_name(self, provider: str) -> str:
        """Returns the name that selects a provider's rows of the price table."""
        return self.find(provider).prices_name

    async def generate(
        self,
        candidates: Sequence[Candidate],
        generation: pb.Generation,
        deadline: float,
        spent: list[Spent],
        tell: Tell,
    ) -> pb.GenerateResponse:
        """Returns the whole answer with its usage and cost, after telling all its deltas.

        Once content has been told, a failure is final, with `delivered` in its metadata: how many characters of text
        there were. Before that, only usage may have been told, and a later attempt's replaces it. Cancelling this ends
        the request to the vendor. A candidate that cannot do what `generation` needs is skipped; raises
        FEATURE_UNSUPPORTED if none can.
        """

        def start(adapter: Adapter, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
            return adapter.stream(generation, model)

        return await self._ask("chat", self._able(candidates, generation), start, generation, deadline, spent, tell)

    async def embed(
        self, candidates: Sequence[Candidate], request: pb.EmbedRequest, deadline: float, spent: list[Spent]
    ) -> pb.EmbedResponse:
        """Returns one vector per text, and their cost. Asks only one model: vectors of two models do not compare."""
        needed = [pb.ABILITY_EMBEDDINGS, *([pb.ABILITY_DIMENSION] if request.HasField("dimension") else [])]
        same = [each for each in candidates if each.model == candidates[0].model]

        async def start(adapter: Adapter, model: str) -> AsyncGenerator[Deltas | pb.EmbedResponse]:
            yield await adapter.embed(request.texts, model, request.dimension)

        able = self._with_abilities(same, needed)
        return await self._ask("embeddings", able, start, _NO_GENERATION, deadline, spent)

    async def moderate(
        self, candidates: Sequence[Candidate], request: pb.ModerateRequest, deadline: float
    ) -> pb.ModerateResponse:
        """Returns one verdict per text."""

        async def start(adapter: Adapter, model: str) -> AsyncGenerator[Deltas | pb.ModerateResponse]:
            yield await adapter.moderate(request.texts, model)

        able = self._with_abilities(candidates, [pb.ABILITY_MODERATION])
        return await self._ask("moderation", able, start, _NO_GENERATION, deadline, [])

    async def count_tokens(
        self, candidates: Sequence[Candidate], generation: pb.Generation, deadline: float
    ) -> pb.CountTokensResponse:
        """Returns how many tokens the model would read, and whether that is an estimate."""

        async def start(adapter: Adapter, model: str) -> AsyncGenerator[Deltas | pb.CountTokensResponse]:
            yield await adapter.count_tokens(generation, model)

        able = self._able(candidates, generation)
        return await self._ask("count_tokens", able, start, generation, deadline, [])

    def _able(self, candidates: Sequence[Candidate], generation: pb.Generation) -> list[Candidate]:
        """Returns the candidates that can do what is asked, each with its model. Raises FEATURE_UNSUPPORTED."""
        return self._choose(self.named(candidates), lambda can: abilities.missing(generation, can))

    def _with_abilities(
        self, candidates: Sequence[Candidate], needed: Sequence[pb.Ability.ValueType]
    ) -> list[Candidate]:
        return self._choose(candidates, lambda can: [abilities.feature(each) for each in needed if each not in can])

    def _choose(self, candidates: Sequence[Candidate], missing: _Missing) -> list[Candidate]:
        lacking = [(candidate, missing(self.abilities(candidate.provider))) for candidate in candidates]
        able = [candidate for candidate, features in lacking if not features]
        if not able:
            (provider, _), features = lacking[0]
            raise unsupported(provider, ", ".join(features))
        return able

    async def _ask(
        self,
        operation: str,
        candidates: Sequence[Candidate],
        start: Start[T],
        generation: pb.Generation,
        deadline: float,
        spent: list[Spent],
        tell: Tell = tell_nobody,
    ) -> T:
        stages = [Stage(candidate, self.find(candidate.provider).endpoints) for candidate in candidates]
        tries = course(stages, self._config.max_attempts, deadline, time.monotonic, random.random)
        planned = next(tries)
        alarm = Alarm(deadline)
        work = Work(start, generation, self._prices, alarm, spent)
        try:
            while True:
                attempt = self._attempt(operation, work, planned)
                try:
                    if planned.wait_seconds > 0:
                        with alarm:
                            await asyncio.sleep(planned.wait_seconds)
                    async with attempt:
                        return await attempt.answer(tell)
                except (AgentShellError, TimeoutError) as error:
                    failure = attempt.failure or failure_of(error, planned.candidate.provider)
                    following = None if attempt.has_content or alarm.rang else _following(tries, failure)
                    if following is None:
                        raise failure from failure.__cause__
                    planned = following
        finally:
            alarm.stop()

    def _attempt(self, operation: str, work: Work[T], planned: Try) -> Attempt[T]:
        found = self.find(planned.candidate.provider)
        label = self._label(found, planned.candidate.model)
        subject = metrics.subject(operation, found.name, found.prices_name, label)
        return Attempt(work, planned.candidate, found.prices_name, planned.endpoint, subject)

    def _label(self, found: Vendor, model: str) -> str:
        """Returns the model's name in metrics: `other` for an unknown one, since there may be any number of those."""
        if f"{found.name}/{model}" in self._known_models:
            return model
        row = self._prices.find(found.prices_name, model)
        return row.model if row else _OTHER_MODEL

    def _check_route(self, key: str, route: Sequence[str]) -> None:
        for name in route:
            if name.partition("/")[0] not in self._vendors:
                fix = f"name one of: {', '.join(self.providers())}"
                raise AgentShellError(
                    error_pb2.ERROR_REASON_CONFIG_INVALID,
                    f"configuration key {key!r} names {name!r}, whose provider does not exist; {fix}",
                    metadata={"key": key, "value": name, "fix": fix},
                )


def kinds(config: ProviderConfig) -> dict[str, Kind]:
    """Returns each vendor's kind of adapter, by the configuration or else by its name. Raises CONFIG_INVALID."""
    own = {name: configured.adapter for name, configured in config.vendors.items()}
    return {name: adapters.kind(own.get(name) or name) for name in dict.fromkeys((*BUILT_IN, *own))}


def _routes(config: ProviderConfig) -> dict[str, tuple[str, ...]]:
    """Returns all routes of the configuration by their keys."""
    found = {f"provider.aliases.{alias}": route for alias, route in config.aliases.items()}
    for section, owners in (
        ("tenant_aliases", config.tenant_aliases),
        ("personality_aliases", config.personality_aliases),
    ):
        for owner, aliases in owners.items():
            found |= {f"provider.{section}.{owner}.{alias}": route for alias, route in aliases.items()}
    return found


def _following(tries: Generator[Try, AgentShellError, None], failure: AgentShellError) -> Try | None:
    try:
        return tries.send(failure)
    except StopIteration:
        return None
