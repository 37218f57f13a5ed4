"""Whether today's code decides what a recorded history says was decided. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentshell.turn.decision import decide, expire, expire_inputs, restart
from agentshell.turn.state import apply, is_over
from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import STEP_STATE_SCHEDULED, Turn

# What people and workers say. Whether the owner knew it when it decided, the history does not tell: it may know what
# comes of steps before it reads what people wrote earlier.
_PEOPLE, _WORKERS = 0, 1
_FACTS = {
    "turn_cancel_requested": _PEOPLE,
    "input_provided": _PEOPLE,
    "step_succeeded": _WORKERS,
    "step_failed": _WORKERS,
}
_MAX_VIEWS = 16
_MAX_POSSIBLE = 1000


@dataclass(frozen=True, slots=True)
class Divergence:
    """A recorded decision that today's code does not make. `decided` is what it makes there instead."""

    recorded: RecordedTurnEvent
    decided: tuple[TurnEvent, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """The turn as its owner may have seen it: with so many of the facts of each kind, and with all decisions.

    `rest` is what was decided together with the newest decision: all of that was written, one after another.
    """

    turn: Turn
    known: tuple[int, int]
    rest: tuple[TurnEvent, ...] = ()


def divergences(events: Iterable[RecordedTurnEvent]) -> list[Divergence]:
    """Returns the decisions of one turn's history, oldest first, that are not among those of today's code.

    What changed nothing when it was written is passed over. Messages for people may differ.
    """
    found: list[Divergence] = []
    fold, views, requested = Turn(), list[_View](), TurnRequested()
    facts: tuple[list[TurnEvent], list[TurnEvent]] = ([], [])
    for recorded in events:
        event = recorded.event
        kind = _kind_of_fact(fold, event)
        if not apply(fold, event):
            continue
        if event.HasField("turn_requested"):
            requested = event.turn_requested
            views = [_View(_copy(fold), (0, 0))]
        elif kind is not None:
            facts[kind].append(event)
        else:
            possible = _possible(views, facts)
            views = [after for view in possible if (after := _after(view, event, requested))][-_MAX_VIEWS:]
            if not views:
                found.append(Divergence(recorded, tuple(_decisions(possible[-1].turn, requested, event))))
                views = [_View(_copy(fold), (len(facts[_PEOPLE]), len(facts[_WORKERS])))]
    return found


def _kind_of_fact(turn: Turn, event: TurnEvent) -> int | None:
    """Returns whose word the event is; None: it is a decision. So is a failure where no attempt was made."""
    if event.HasField("step_failed"):
        step = next((step for step in turn.plan.steps if step.step_id == event.step_failed.step_id), None)
        if step is None or step.state != STEP_STATE_SCHEDULED or step.HasField("approval"):
            return None
    return _FACTS.get(event.WhichOneof("event") or "")


def _possible(views: Sequence[_View], facts: tuple[list[TurnEvent], list[TurnEvent]]) -> list[_View]:
    """Returns the views, and what becomes of them by knowing more, fact by fact; those that know most come last."""
    found: dict[tuple[tuple[int, int], bytes], _View] = {}
    open_views = list(views)
    while open_views and len(found) < _MAX_POSSIBLE:
        view = open_views.pop(0)
        key = (view.known, view.turn.SerializeToString(deterministic=True))
        if key in found:
            continue
        found[key] = view
        for kind in (_PEOPLE, _WORKERS):
            if view.known[kind] < len(facts[kind]):
                turn = _copy(view.turn)
                apply(turn, facts[kind][view.known[kind]])
                people, workers = view.known
                known = (people + 1, workers) if kind == _PEOPLE else (people, workers + 1)
                open_views.append(_View(turn, known))
    return sorted(found.values(), key=lambda view: sum(view.known))


def _after(view: _View, event: TurnEvent, requested: TurnRequested) -> _View | None:
    """Returns what a recorded decision makes of a view; None: who sees the turn so does not decide so."""
    content = _content(event)
    for decided in (view.rest, tuple(_decisions(view.turn, requested, event))):
        rest = tuple(other for other in decided if _content(other) != content)
        if len(rest) < len(decided):
            turn = _copy(view.turn)
            apply(turn, event)
            return _View(turn, view.known, rest)
    return None


def _decisions(turn: Turn, requested: TurnRequested, event: TurnEvent) -> list[TurnEvent]:
    """Returns what may be decided about a turn when `event` was: also by a new owner, or because time is up."""
    if is_over(turn):
        return []
    decided = [*decide(turn, requested), *restart(turn), *expire_inputs(turn, event.header.time.ToDatetime())]
    return [*decided, expire(turn)] if event.HasField("turn_failed") else decided


def _content(event: TurnEvent) -> TurnEvent:
    """Returns an event without what says who wrote it down, and without the words for people."""
    content = TurnEvent()
    content.CopyFrom(event)
    content.ClearField("header")
    content.ClearField("turn_id")
    payload = getattr(content, content.WhichOneof("event") or "")
    if "failure" in payload.DESCRIPTOR.fields_by_name:
        payload.failure.ClearField("message")
    return content


def _copy(turn: Turn) -> Turn:
    copied = Turn()
    copied.CopyFrom(turn)
    return copied
