"""A model of a partition of `agent.turns`: appends are atomic, ordered and permanent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from agentshell.turn.state import Fold
from kfm.turn.v1.turn_event_pb2 import TurnEvent
from kfm.turn.v1.turn_pb2 import Turn


class Log:
    """Events by offset. `folds` has the fold of each turn; `has_changed` tells of each event whether it counted.

    `drops_duplicates` models Postgres; Iggy writes a repeated id again.
    """

    def __init__(self, *, drops_duplicates: bool) -> None:
        self.drops_duplicates = drops_duplicates
        self.events: list[TurnEvent] = []
        self.has_changed: list[bool] = []
        self.folds: dict[str, Fold] = defaultdict(lambda: Fold(Turn()))
        self._offsets: dict[str, int] = {}

    def append(self, events: Sequence[TurnEvent]) -> list[tuple[int, bool]]:
        """Appends all events; returns each one's offset, and whether it was there before."""
        return [self._append(event) for event in events]

    def _append(self, event: TurnEvent) -> tuple[int, bool]:
        event_id = event.header.event_id
        if self.drops_duplicates and event_id in self._offsets:
            return self._offsets[event_id], True
        offset = len(self.events)
        self._offsets[event_id] = offset
        self.events.append(event)
        self.has_changed.append(self.folds[event.turn_id].apply(event))
        return offset, False
