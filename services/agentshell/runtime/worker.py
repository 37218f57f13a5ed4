"""Runs steps: one task per attempt, on behalf of the turn's principal, within the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache

import structlog
from opentelemetry import trace

from agentshell.log.log import MAX_PAYLOAD_BYTES, Log, Record
from agentshell.mesh import call, errors, redaction, telemetry
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.telemetry import STEP_SECONDS, STEPS
from agentshell.runtime.inbox import Made
from agentshell.runtime.outputs import Outputs
from agentshell.runtime.places import Places
from agentshell.runtime.request import has_turn
from agentshell.runtime.steps.step import HANDED_OVER, StepRunner
from agentshell.turn.decision import nanoseconds
from agentshell.turn.records import stamp
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1.turn_event_pb2 import StepFailed, StepRequest, TurnEvent
from kfm.turn.v1.turn_pb2 import StepResult

_log = structlog.get_logger("agentshell.worker")

Done = Callable[[Made], None]

_seconds, _ended = cache(STEP_SECONDS.labels), cache(STEPS.labels)

# A result goes into a record, as does the turn's output; the rest leaves room for what surrounds it.
MAX_RESULT_BYTES = MAX_PAYLOAD_BYTES - 64 * 1024
_MAX_FAILURE_BYTES = 16 * 1024  # Including its causes; the turn's failure repeats it.
_MAX_FAILURE_CHARACTERS = 2000


@dataclass(slots=True, eq=False)
class _Attempt:
    turn_id: str
    step_id: str
    number: int
    done: Done


class Worker:
    """Runs up to `max_active` attempts at once; the rest wait for one of the `Places`.

    `runners` has one runner per kind of step.
    """

    def __init__(self, log: Log, runners: Mapping[str, StepRunner], max_active: int) -> None:
        self._log = log
        self._runners = runners
        self._places = Places(max_active)
        self._tasks: dict[asyncio.Task[None], _Attempt] = {}

    def start(self, request: StepRequest, done: Done) -> None:
        """Starts an attempt. `done` receives its StepSucceeded or StepFailed, unless the attempt is cancelled."""
        attempt = _Attempt(request.turn_id, request.step.step_id, request.attempt, done)
        task = asyncio.create_task(self._run(request, attempt), name=f"step {attempt.step_id}")
        self._tasks[task] = attempt
        task.add_done_callback(self._tasks.pop)

    def cancel(self, turn_id: str, step_id: str = "") -> None:
        """Cancels the attempts at a step, or at all steps of a turn, with their calls. They report nothing."""
        for task, attempt in self._tasks.items():
            if attempt.turn_id == turn_id and step_id in ("", attempt.step_id):
                task.cancel()

    def redirect(self, step_id: str, number: int, done: Done) -> bool:
        """Makes an attempt report to `done`. Returns whether it is under way."""
        for task, attempt in self._tasks.items():
            if (attempt.step_id, attempt.number) == (step_id, number) and not task.cancelling():
                attempt.done = done
                return True
        return False

    def keep(self, done: Done) -> None:
        """Hands over all attempts except those that report to `done`."""
        for task, attempt in self._tasks.items():
            if attempt.done != done:
                task.cancel(HANDED_OVER)

    def hand_over(self, step_ids: Collection[str] | None = None) -> None:
        """Stops the attempts at these steps, or all: another worker redoes them, and finds what they started."""
        for task, attempt in self._tasks.items():
            if step_ids is None or attempt.step_id in step_ids:
                task.cancel(HANDED_OVER)

    async def drain(self, timeout: float) -> None:
        """Waits up to `timeout` seconds for the attempts under way, then hands them over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        self.hand_over()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, request: StepRequest, attempt: _Attempt) -> None:
        structlog.contextvars.bind_contextvars(turn_id=request.turn_id, step_id=request.step.step_id)
        if request.HasField("start_time"):
            start, asked = (at.ToNanoseconds() / 1e9 for at in (request.start_time, request.header.time))
            await asyncio.sleep(min(max(0.0, start - time.time()), start - asked))  # The clock may be set back.
        # A sub-turn needs places itself: waiting for it while holding one could deadlock.
        if has_turn(request.step):
            made = await self._make(request)
        else:
            tenant_id = request.header.tenant_id
            await self._places.take(tenant_id, request.priority)
            try:
                made = await self._make(request)
            finally:
                self._places.give_back(tenant_id)
        attempt.done(made)  # `done` may have changed since the start.

    async def _make(self, request: StepRequest) -> Made:
        kind = request.step.WhichOneof("kind") or ""
        event, said, began = TurnEvent(), list[Record](), time.perf_counter()
        span = telemetry.enter_span(f"step {kind}", request.header.traceparent)
        try:
            result = await self._within_deadline(request, kind, said)
            succeeded = event.step_succeeded
            succeeded.step_id, succeeded.attempt = request.step.step_id, request.attempt
            succeeded.result.CopyFrom(result)
            _ended(kind, "succeeded").inc()
        except Exception as exception:
            error = errors.of(exception)
            span.set_status(trace.StatusCode.ERROR, redaction.redact(error.message))
            if error.reason == error_pb2.ERROR_REASON_INTERNAL:
                _log.error("step failed", kind=kind, attempt=request.attempt, exc_info=exception)
            failure = _told(error)
            event.step_failed.CopyFrom(
                StepFailed(step_id=request.step.step_id, attempt=request.attempt, failure=failure)
            )
            _ended(kind, error.name.lower()).inc()
        finally:
            _seconds(kind).observe(time.perf_counter() - began)
            span.end()
        return Made(stamp(event, request.turn_id, request.header), said)

    async def _within_deadline(self, request: StepRequest, kind: str, said: list[Record]) -> StepResult:
        outputs = Outputs(self._log, request)
        asked = nanoseconds(request.header.time)
        seconds = (nanoseconds(request.deadline) - max(asked, time.time_ns())) / 1e9  # The clock may be set back.
        if request.step.HasField("timeout"):  # It counts from here: waiting for a place is not part of it.
            seconds = min(seconds, nanoseconds(request.step.timeout) / 1e9)
        principal = call.Principal(request.header.tenant_id, request.principal_id)
        call.enter(principal, seconds)  # Lasts as long as the task, which is the attempt's.
        try:
            async with asyncio.timeout(seconds):
                result = await self._runners[kind].run(request, outputs.emit)
                said += await outputs.flush()
        except TimeoutError:
            raise _step_timeout(request) from None
        except Exception as exception:
            error = errors.of(exception)
            if error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED:  # The called service noticed it first.
                raise _step_timeout(request) from error
            raise
        finally:
            outputs.close()
        if result.ByteSize() > MAX_RESULT_BYTES:
            raise _too_large(request, result)
        result.delta_count = outputs.count
        return result


def _told(error: AgentShellError) -> Failure:
    """Returns an error as a Failure; one that is too large keeps only the start of its message."""
    failure = errors.to_failure(error)
    if failure.ByteSize() > _MAX_FAILURE_BYTES:
        failure.message = failure.message[:_MAX_FAILURE_CHARACTERS]
        failure.ClearField("metadata")
        failure.ClearField("cause")
    return failure


def _too_large(request: StepRequest, result: StepResult) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_TOO_LARGE,
        f"the result of step {request.step.step_id} takes {result.ByteSize()} bytes, the limit is "
        f"{MAX_RESULT_BYTES}; request less",
        metadata={"step_id": request.step.step_id, "limit_bytes": str(MAX_RESULT_BYTES)},
    )


def _step_timeout(request: StepRequest) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_STEP_TIMEOUT,
        f"attempt {request.attempt} at step {request.step.step_id} did not end in time; raise the step's timeout",
        metadata={"step_id": request.step.step_id, "attempt": str(request.attempt)},
    )
