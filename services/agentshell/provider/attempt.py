"""One call to a vendor at one endpoint: its slot there, its usage, and what its outcome says about the endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

from google.protobuf.message import Message as AnyMessage

from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from agentshell.provider import backoff
from agentshell.provider.adapters.adapter import Adapter, Deltas, Tell
from agentshell.provider.alarm import Alarm
from agentshell.provider.endpoint import Endpoint
from agentshell.provider.metering import Meter, Spent
from agentshell.provider.metrics import Measurement, Subject
from agentshell.provider.pricing import CURRENCY_CODE, Prices
from agentshell.provider.routing import Candidate
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

# How long other endpoints are preferred after a rate limit without a stated delay, and after a refused key.
LIMITED_REST_SECONDS = 1.0
REFUSED_KEY_REST_SECONDS = 60.0
_NOTHING = content_pb2.Money(currency_code=CURRENCY_CODE)

T = TypeVar("T", bound=AnyMessage)
# Asks an adapter's model; yields deltas, if there are any, and finally the answer.
Start: TypeAlias = Callable[[Adapter, str], AsyncGenerator[Deltas | T]]


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """A request to vendors, whichever of them is asked in the end.

    The usage of a call that is cut off is estimated from `generation`. `alarm` ends it; each attempt adds to `spent`.
    """

    start: Start[T]
    generation: pb.Generation
    prices: Prices
    alarm: Alarm
    spent: list[Spent]


class Attempt(Generic[T]):
    """Use with `async with`, and await its `answer`. Leaving the block ends the call to the vendor at once."""

    def __init__(
        self, work: Work[T], candidate: Candidate, prices_name: str, endpoint: Endpoint, subject: Subject
    ) -> None:
        self._work = work
        self._candidate = candidate
        self._prices_name = prices_name
        self._endpoint = endpoint
        self._subject = subject
        self._meter = Meter(work.generation)
        self._answer: T | None = None
        self.has_content = False
        """Whether the reader has seen any of the answer."""
        self.failure: AgentShellError | None = None
        """Why it failed; None if it has not, or never began."""

    async def __aenter__(self) -> Self:
        """Waits for a slot. Raises PROVIDER_CIRCUIT_OPEN, OVERLOADED, and TimeoutError at the deadline."""
        breaker, slots = self._endpoint.breaker, self._endpoint.slots
        try:
            permit = None
            if breaker.refused_seconds(time.monotonic()) == 0:
                if not slots.try_take():
                    with self._work.alarm:
                        await slots.take()
                permit = breaker.ask(time.monotonic())
                if permit is None:  # It opened meanwhile.
                    slots.give_back()
            if permit is None:
                raise self._circuit_open()
        except AgentShellError as refusal:
            self._subject.failed(refusal)
            raise
        self._permit = permit
        self._measurement = Measurement(self._subject, self._candidate.model)
        self._items = self._work.start(self._endpoint.adapter, self._candidate.model)
        return self

    async def answer(self, tell: Tell) -> T:
        """Returns the answer after telling its deltas. Raises the vendor's failure; TimeoutError at the deadline."""
        with self._work.alarm:
            async for item in self._items:
                if not isinstance(item, list):
                    self._finish(item)
                    return item
                if self._meter.add(item) and not self.has_content:
                    self.has_content = True
                    self._measurement.first_delta()
                    self._endpoint.breaker.answers(self._permit)
                tell(item)
        raise RuntimeError(f"the adapter of {self._endpoint.label} ended without an answer")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.failure = None if error is None else failure_of(error, self._candidate.provider)
            self._record(self.failure)
        finally:
            try:
                await self._items.aclose()
            finally:
                self._endpoint.slots.give_back()

    def _finish(self, answer: T) -> None:
        self._answer = answer
        match answer:
            case pb.GenerateResponse():
                answer.usage.CopyFrom(self._meter.final(answer))
                self._price(answer.usage, answer.model)
            case pb.EmbedResponse():
                self._price(answer.usage, answer.model)
            case _:  # Verdicts and counts cost nothing.
                pass

    def _record(self, failure: AgentShellError | None) -> None:
        match self._answer:
            case pb.GenerateResponse() | pb.EmbedResponse() as answer:
                usage = content_pb2.Usage()
                usage.CopyFrom(answer.usage)
                model = self._candidate.model or answer.model
            case _:
                usage, model = self._used_until(failure), self._candidate.model
                if usage.input_tokens:
                    self._price(usage, "")
                else:  # Without usage the cost is zero, whatever the price.
                    usage.cost.CopyFrom(_NOTHING)
        if failure is not None and self.has_content:
            failure.metadata["delivered"] = str(self._meter.characters)
        self._work.spent.append(Spent(self._candidate.provider, model, usage, failure))
        self._measurement.end(usage, failure, self._answer)
        self._judge(failure)

    def _used_until(self, failure: AgentShellError | None) -> content_pb2.Usage:
        """Returns what an attempt without an answer used: vendors do not bill what they fail before answering."""
        is_theirs = failure is not None and failure.reason != error_pb2.ERROR_REASON_CANCELLED
        return content_pb2.Usage() if is_theirs and not self.has_content else self._meter.usage()

    def _price(self, usage: content_pb2.Usage, answered_by: str) -> None:
        """Sets the cost by the requested model, as budgets do, or else by the vendor's name for it."""
        prices, name = self._work.prices, self._prices_name
        cost = prices.cost(name, self._candidate.model, usage)
        if cost is None and answered_by:
            cost = prices.cost(name, answered_by, usage)
        if cost is not None:
            usage.cost.CopyFrom(cost)

    def _judge(self, failure: AgentShellError | None) -> None:
        """Records the outcome at the endpoint. A deadline that came too soon says nothing about it."""
        endpoint, now = self._endpoint, time.monotonic()
        if failure is None:
            endpoint.breaker.succeeds(self._permit)
            return
        if failure.reason in backoff.UNHEALTHY and not self._work.alarm.rang:
            endpoint.breaker.fails(self._permit, now)
        else:
            endpoint.breaker.is_given_up(self._permit, now)
        if failure.reason == error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED:
            delay = failure.retry_delay
            endpoint.rest(now, LIMITED_REST_SECONDS if delay is None else delay.total_seconds())
        elif failure.reason == error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID:
            endpoint.rest(now, REFUSED_KEY_REST_SECONDS)

    def _circuit_open(self) -> AgentShellError:
        label, provider = self._endpoint.label, self._candidate.provider
        seconds = self._endpoint.breaker.refused_seconds(time.monotonic())
        return AgentShellError(
            error_pb2.ERROR_REASON_PROVIDER_CIRCUIT_OPEN,
            f"endpoint {label} of provider {provider} failed too often and is not used for {seconds:.1f} s: ask "
            "again then, or use another model",
            metadata={"provider": provider, "model": self._candidate.model, "endpoint": label},
            retry_delay=timedelta(seconds=seconds),
        )


def failure_of(error: BaseException, provider: str) -> AgentShellError:
    """Returns why a call to a vendor ended, whoever ended it."""
    match error:
        case TimeoutError():
            return AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
                f"provider {provider} did not answer before the caller's deadline: allow more time, or ask for less",
                metadata={"provider": provider},
                cause=error,
            )
        case asyncio.CancelledError():
            return AgentShellError(error_pb2.ERROR_REASON_CANCELLED, "the call was cancelled")
        case _:
            return errors.of(error)
