"""Carries out requests to generate, from the claim and the budget to the answer that is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from agentshell import tokens
from agentshell.mesh import call
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import metrics, output_schema, response_cache, token_bound
from agentshell.provider.adapters import answer
from agentshell.provider.adapters.adapter import Tell
from agentshell.provider.answers import Answers
from agentshell.provider.budget import Limit, Reservation
from agentshell.provider.ledger import Ledger, Most, total
from agentshell.provider.metering import Spent
from agentshell.provider.output_schema import OutputSchema
from agentshell.provider.response_cache import ResponseCache
from agentshell.provider.routing import Candidate
from agentshell.provider.runs import Request
from agentshell.provider.vendors import Vendors
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

# A call without a deadline of its own still ends.
_MAX_CALL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to generate, and the models it leads to."""

    request: Request
    generation: pb.Generation
    purpose: pb.Purpose
    candidates: tuple[Candidate, ...]
    schema: OutputSchema | None = None
    cache_ttl: timedelta | None = None


class Generations:
    """Generates, at most once for each request_id and within what the caller may spend."""

    def __init__(
        self, vendors: Vendors, ledger: Ledger, answers: Answers, cache: ResponseCache, default_max_output_tokens: int
    ) -> None:
        self._vendors = vendors
        self._ledger = ledger
        self._answers = answers
        self._cache = cache
        self._default_max_output_tokens = default_max_output_tokens

    async def answer(self, ask: Ask, tell: Tell) -> pb.GenerateResponse:
        """Returns the answer after telling its deltas. A client's answer is stored by then if its request has an id."""
        if not ask.request.request_id:
            return await self._cached(ask, tell)
        first = await self._answers.claim(ask.request)
        if first is not None:
            metrics.REPLAYS.inc()
            return _replay(first, tell)
        try:
            response = await self._cached(ask, tell)
            if not call.current().is_inside:
                return await self._answers.keep(ask.request, response)
            await self._answers.keep_meanwhile(ask.request, response)
            return response
        except BaseException:
            await asyncio.shield(asyncio.create_task(self._release(ask.request)))
            raise

    async def _release(self, request: Request) -> None:
        with suppress(AgentShellError):  # Without a database, the claim ends with this process.
            await self._answers.release(request)

    async def _cached(self, ask: Ask, tell: Tell) -> pb.GenerateResponse:
        if ask.cache_ttl is None:
            return await self._generate(ask, tell)
        tenant_id = ask.request.tenant_id
        digest = response_cache.digest(ask.generation, ask.candidates)
        found = await self._cache.find(tenant_id, digest, ask.cache_ttl)
        if found is not None:
            metrics.CACHE_HITS.inc()
            return _replay(found, tell)
        response = await self._generate(ask, tell)
        if response.finish_reason != pb.FINISH_REASON_CONTENT_FILTER:
            await self._cache.keep(tenant_id, digest, ask.cache_ttl, response)
        return response

    async def _generate(self, ask: Ask, tell: Tell) -> pb.GenerateResponse:
        generation, reservation = await self._reserved(ask)
        spent: list[Spent] = []
        try:
            response = await self._ask(ask.schema, ask.candidates, generation, tell, spent)
        finally:
            await self._ledger.settle(ask.purpose, reservation, spent)
        response.usage.CopyFrom(total(spent))
        return response

    async def _reserved(self, ask: Ask) -> tuple[pb.Generation, Reservation | None]:
        """Returns the request, with a limit on its answer if any budget applies, and what is reserved for it."""
        limits = self._ledger.limits(ask.purpose)
        if not limits:
            return ask.generation, None
        if ask.generation.parameters.HasField("max_output_tokens"):
            most = _most(ask, limits, ask.generation.parameters.max_output_tokens)
            return ask.generation, await self._ledger.reserve(limits, ask.candidates, most)
        longest = self._default_max_output_tokens
        try:
            reservation = await self._ledger.reserve(limits, ask.candidates, _most(ask, limits, longest))
        except AgentShellError as refusal:
            longest = _fitting(ask, limits, refusal)
            reservation = await self._ledger.reserve(limits, ask.candidates, _most(ask, limits, longest))
        generation = pb.Generation()
        generation.CopyFrom(ask.generation)
        generation.parameters.max_output_tokens = longest
        return generation, reservation

    async def _ask(
        self,
        schema: OutputSchema | None,
        candidates: Sequence[Candidate],
        generation: pb.Generation,
        tell: Tell,
        spent: list[Spent],
    ) -> pb.GenerateResponse:
        if schema is None:
            return await self._vendors.generate(candidates, generation, deadline(), spent, tell)
        # Deltas cannot be taken back: they are told once the answer is known to be valid.
        grown: list[pb.GenerationDelta] = []
        response = await self._vendors.generate(candidates, generation, deadline(), spent, grown.extend)
        problem = schema.problem(response)
        if problem and response.finish_reason == pb.FINISH_REASON_STOP:
            metrics.REPAIRS.inc()
            grown.clear()
            answered = (Candidate(spent[-1].provider, spent[-1].model),)
            again = output_schema.repaired(generation, response, problem)
            response = await self._vendors.generate(answered, again, deadline(), spent, grown.extend)
            problem = schema.problem(response)
        if problem:
            raise _invalid(response, problem)
        tell(grown)
        return response


def deadline() -> float:
    """Returns when the caller's time is up, on the clock of `time.monotonic`."""
    return call.current().deadline or time.monotonic() + _MAX_CALL_SECONDS


def _most(ask: Ask, limits: Sequence[Limit], output_tokens: int) -> Most:
    """Returns the most tokens that a call takes for an answer of that length, and for its repair if it may need one."""
    # Estimating a long request takes milliseconds: done only if tokens are limited.
    likely = 0 if all(limit.of_cost for limit in limits) else tokens.estimate_generation(ask.generation)
    bound = token_bound.of_generation(ask.generation)
    if ask.schema is None:
        return Most(likely, bound, output_tokens)
    return Most(2 * likely + output_tokens, 2 * bound + output_tokens, 2 * output_tokens)


def _fitting(ask: Ask, limits: Sequence[Limit], refusal: AgentShellError) -> int:
    """Returns how long an answer may be in the tokens that are left. Raises the refusal if there is no room."""
    left_tokens = int(refusal.metadata.get("left_tokens", "0"))
    at_all = _most(ask, limits, 0)
    answers = 1 if ask.schema is None else 3  # The first, the first read again as input, and the repaired one.
    fitting = (left_tokens - at_all.input_tokens) // answers
    if fitting < 1:
        raise refusal
    return fitting


def _replay(response: pb.GenerateResponse, tell: Tell) -> pb.GenerateResponse:
    tell(answer.deltas(response))
    return response


def _invalid(response: pb.GenerateResponse, problem: str) -> AgentShellError:
    advice = (
        "because it reached its limit of tokens: raise max_output_tokens"
        if response.finish_reason == pb.FINISH_REASON_LENGTH
        else "and so does its repaired version: simplify the schema, or use another model"
    )
    return AgentShellError(
        error_pb2.ERROR_REASON_PROVIDER_OUTPUT_INVALID,
        f"the answer of {response.model} breaks the request's output_schema ({problem}), {advice}",
        metadata={"provider": response.provider, "model": response.model, "problem": problem},
    )
