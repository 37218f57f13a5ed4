"""A turn as its owner holds it: folded, timed, and placed in the log."""

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
    """A turn that is not over, or over and not yet concluded.

    `offset` is where reading must begin to fold it again. Its own events are applied when they are written, before they
    are read: up to `folded_offset` it is known to be as the log has it; `written_offset` is that of its newest own.
    """

    partition: int
    offset: int
    requested: TurnRequested
    header: EventHeader  # of its newest event
    folded_offset: int = -1
    fold: Fold = field(default_factory=lambda: Fold(Turn()))
    deadline: float = 0.0  # in seconds since 1970
    written_offset: int = -1
    input_offset: int = -1  # where its beginning is, with what was asked; -1: not known
    output_offsets: dict[str, int] = field(default_factory=dict[str, int])  # step -> where its result is
    interrupted: bool = False  # Its steps under way are nobody's: another owner began them.
    due: bool = False  # Some time is up.
    holds: bool = False  # Nothing more is decided before what was written is read: another's record may come before it.
    defects: int = 0  # How often deciding about it failed.
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
        """Returns whether its time is up. While it waits, the clock stands still."""
        return now >= self.deadline and self.turn.state not in (TURN_STATE_WAITING, TURN_STATE_CANCELLING)

    def next_time(self) -> float:
        """Returns when it is to be looked at even if nothing happens, in seconds since 1970."""
        times = [(end + INPUT_GRACE).replace(tzinfo=UTC).timestamp() for end in input_end_times(self.turn).values()]
        if self.turn.state != TURN_STATE_WAITING or not times:
            times.append(self.deadline)
        return min(times)

    @property
    def turn(self) -> Turn:
        """The turn as it is folded."""
        return self.fold.turn

    @property
    def attempts(self) -> set[tuple[str, int]]:
        """The steps that somebody is to be making now, and which attempt at each."""
        steps = (step for step in self.turn.plan.steps if step.state == STEP_STATE_SCHEDULED)
        return {(step.step_id, step.attempt) for step in steps if not step.HasField("approval")}

    @property
    def is_confirmed(self) -> bool:
        """Whether it is as the log has it."""
        return self.folded_offset >= self.written_offset

    def place(self, event: TurnEvent, offset: int) -> None:
        """Says where an event is."""
        if event.HasField("step_succeeded"):
            self.output_offsets[event.step_succeeded.step_id] = offset
        elif event.HasField("turn_requested"):
            self.input_offset = offset
