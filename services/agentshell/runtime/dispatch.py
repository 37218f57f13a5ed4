"""How attempts reach the workers: by a call in the same process, or through the log."""

from __future__ import annotations

from typing import Protocol

from agentshell.log.log import MAX_PAYLOAD_BYTES, Record
from agentshell.mesh import ids
from agentshell.runtime.inbox import Made
from agentshell.runtime.open_turn import OpenTurn
from agentshell.runtime.request import sources
from agentshell.runtime.worker import Done, Worker
from agentshell.turn import envelope
from agentshell.turn.decision import unfit
from agentshell.turn.records import command_record, stamp
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepCommand, StepRequest, StepStop

# Repeating a smaller input is faster than looking it up.
_MAX_REPEATED_BYTES = 1024


class Dispatch(Protocol):
    """Starts and stops attempts. Records that it returns go to `agent.steps`, in one append with the decision."""

    # Whether attempts continue after the process of the owner that started them is gone.
    outlives_owner: bool

    def begin(self, open_turn: OpenTurn, request: StepRequest, done: Done) -> list[Record]:
        """Starts an attempt. `done` receives its outcome, unless that comes through the log."""
        ...

    def stop(self, open_turn: OpenTurn, step_id: str = "") -> list[Record]:
        """Stops the attempts at a step, or at all steps of the turn."""
        ...

    def goes_on(self, step_id: str, attempt: int, done: Done) -> bool:
        """Returns whether an earlier owner's attempt is under way here. If so, `done` receives its outcome."""
        ...

    def keep(self, done: Done) -> None:
        """Stops the attempts here that do not report to `done`: other owners now have them, and restart them."""
        ...

    def close(self) -> None:
        """Stops what does not outlive the process."""
        ...


class LocalDispatch:
    """Hands attempts to the worker of this process, without a second record in the log.

    They continue from one owner of the process to the next: when partitions move, those that stay are not disturbed.
    """

    outlives_owner = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def begin(self, open_turn: OpenTurn, request: StepRequest, done: Done) -> list[Record]:
        self._worker.start(request, done)
        return []

    def stop(self, open_turn: OpenTurn, step_id: str = "") -> list[Record]:
        self._worker.cancel(open_turn.turn.turn_id, step_id)
        return []

    def goes_on(self, step_id: str, attempt: int, done: Done) -> bool:
        return self._worker.redirect(step_id, attempt, done)

    def keep(self, done: Done) -> None:
        self._worker.keep(done)

    def close(self) -> None:
        self._worker.hand_over()


class LogDispatch:
    """Writes attempts to `agent.steps`, for the group of workers. Refers to what the log already has."""

    outlives_owner = True

    def begin(self, open_turn: OpenTurn, request: StepRequest, done: Done) -> list[Record]:
        # The same id each time, so that the log or the worker drops a repeat.
        request.header.event_id = ids.digest("run", request.step.step_id, request.attempt)
        command = command_record(StepCommand(run=_by_reference(open_turn, request)))
        if len(command.payload) <= MAX_PAYLOAD_BYTES:
            return [command]
        step = open_turn.fold.steps[request.step.step_id]
        message = f"its input takes {len(command.payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}"
        failed = unfit(step, error_pb2.ERROR_REASON_TOO_LARGE, message)
        done(Made(stamp(failed, request.turn_id, open_turn.header)))
        return []

    def stop(self, open_turn: OpenTurn, step_id: str = "") -> list[Record]:
        stop = StepStop(turn_id=open_turn.turn.turn_id, step_id=step_id)
        envelope.follow(stop.header, open_turn.header)
        event_id = ids.digest("stop", stop.turn_id, step_id)
        envelope.begin(stop.header, event_id, StepStop.DESCRIPTOR.full_name)
        return [command_record(StepCommand(stop=stop))]

    def goes_on(self, step_id: str, attempt: int, done: Done) -> bool:
        """Returns False: what is under way is not known here. Requesting it again changes nothing if it is."""
        return False

    def keep(self, done: Done) -> None:
        """Does nothing: no attempts are here."""

    def close(self) -> None:
        """Does nothing: attempts continue, and the next owner learns their outcome from the log."""


def _by_reference(open_turn: OpenTurn, request: StepRequest) -> StepRequest:
    """Returns the request with offsets in place of a large input and of the outputs that the log has."""
    is_large = request.input.ByteSize() > _MAX_REPEATED_BYTES
    if is_large and request.input == open_turn.turn.input and open_turn.input_offset >= 0:
        request.input_offset = open_turn.input_offset
        request.ClearField("input")
    steps = open_turn.fold.steps
    before, rounds = sources(steps, steps[request.step.step_id])
    outputs = (*request.dependencies, *request.transcript)
    for name, output in zip((*before, *rounds), outputs, strict=True):
        request.output_offsets.append(open_turn.output_offsets.get(name, 0))
        if request.output_offsets[-1]:
            output.Clear()
    return request
