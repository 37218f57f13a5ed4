"""A turn as its owner holds it: folded, timed, and located in the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC

from agentshell.turn.decision import INPUT_GRACE, end_nanoseconds, input_end_times
from agentshell.turn.state import Fold
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import STEP_STATE_SCHEDULED, TURN_STATE_CANCELLING, TURN_STATE_WAITING, Turn


@dataclass(slots=True)
class OpenTurn:
    """A turn that is not over, or is over but not concluded yet.

    `offset` is where reading must start to fold it again. The owner applies its own events as it writes them, before it
    reads them: up to `folded_offset`, the turn is known to match the log. `written_offset` is that of the owner's
    newest event.
    """

    partition: int
    offset: int
    requested: TurnRequested
    header: EventHeader  # of its newest event
    folded_offset: int = -1
    fold: Fold = field(default_factory=lambda: Fold(Turn()))
    deadline: float = 0.0  # in seconds since 1970
    written_offset: int = -1
    input_offset: int = -1  # of its first event, which has the input; -1 if unknown
    output_offsets: dict[str, int] = field(default_factory=dict[str, int])  # step -> offset of its result
    interrupted: bool = False  # Its steps under way were started by another owner.
    due: bool = False  # A timer has expired.
    holds: bool = False  # Decide nothing until what was written is read: another record may come first.
    defects: int = 0  # How often deciding failed.
    concluded: bool = False

    def apply(self, event: TurnEvent) -> bool:
        """Folds an event, and returns whether that changed anything."""
        before = self.turn.state
        if not self.fold.apply(event):
            return False
        self.header = event.header
        if before in (0, TURN_STATE_WAITING):
            self.deadline = end_nanoseconds(self.turn) / 1e9
        return True

    def is_late(self, now: float) -> bool:
        """Returns whether its time is up. The clock stops while the turn waits."""
        return now >= self.deadline and self.turn.state not in (TURN_STATE_WAITING, TURN_STATE_CANCELLING)

    def next_time(self) -> float:
        """Returns when to look at it even if nothing happens, in seconds since 1970."""
        times = [(end + INPUT_GRACE).replace(tzinfo=UTC).timestamp() for end in input_end_times(self.turn).values()]
        if self.turn.state != TURN_STATE_WAITING or not times:
            times.append(self.deadline)
        return min(times)

    @property
    def turn(self) -> Turn:
        """The folded turn."""
        return self.fold.turn

    @property
    def attempts(self) -> set[tuple[str, int]]:
        """The attempts that should be under way now, as (step, attempt) pairs."""
        steps = (step for step in self.turn.plan.steps if step.state == STEP_STATE_SCHEDULED)
        return {(step.step_id, step.attempt) for step in steps if not step.HasField("approval")}

    @property
    def is_confirmed(self) -> bool:
        """Whether it matches the log."""
        return self.folded_offset >= self.written_offset

    def place(self, event: TurnEvent, offset: int) -> None:
        """Records the offset of an event."""
        if event.HasField("step_succeeded"):
            self.output_offsets[event.step_succeeded.step_id] = offset
        elif event.HasField("turn_requested"):
            self.input_offset = offset
