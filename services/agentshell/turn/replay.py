"""Checks whether today's code makes the decisions in a recorded history. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentshell.turn.decision import decide, expire, expire_inputs, restart
from agentshell.turn.state import apply, is_over
from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import STEP_STATE_SCHEDULED, Turn

# Facts that people and workers report. The history does not tell whether the owner knew them when it decided: it may
# learn the outcomes of steps before it reads what people wrote earlier.
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
    """A recorded decision that today's code does not make. `decided` is what it decides there instead."""

    recorded: RecordedTurnEvent
    decided: tuple[TurnEvent, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """The turn as its owner may have seen it: with `known` facts of each kind, and with all decisions.

    `rest` is the remainder of what was decided together with the newest decision, and so was written right after it.
    """

    turn: Turn
    known: tuple[int, int]
    rest: tuple[TurnEvent, ...] = ()


def divergences(events: Iterable[RecordedTurnEvent]) -> list[Divergence]:
    """Returns the decisions in one turn's history, oldest first, that today's code does not make.

    Skips events that had no effect when they were written. Messages for people may differ.
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
    """Returns who reports the event, or None for a decision, such as a failure without an attempt."""
    if event.HasField("step_failed"):
        step = next((step for step in turn.plan.steps if step.step_id == event.step_failed.step_id), None)
        if step is None or step.state != STEP_STATE_SCHEDULED or step.HasField("approval"):
            return None
    return _FACTS.get(event.WhichOneof("event") or "")


def _possible(views: Sequence[_View], facts: tuple[list[TurnEvent], list[TurnEvent]]) -> list[_View]:
    """Returns the views, and those reached by adding facts one at a time; the ones with most facts come last."""
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
    """Returns the view after a recorded decision, or None if an owner with this view would not make it."""
    content = _content(event)
    for decided in (view.rest, tuple(_decisions(view.turn, requested, event))):
        rest = tuple(other for other in decided if _content(other) != content)
        if len(rest) < len(decided):
            turn = _copy(view.turn)
            apply(turn, event)
            return _View(turn, view.known, rest)
    return None


def _decisions(turn: Turn, requested: TurnRequested, event: TurnEvent) -> list[TurnEvent]:
    """Returns what could be decided at the time of `event`, including by a new owner or because time is up."""
    if is_over(turn):
        return []
    decided = [*decide(turn, requested), *restart(turn), *expire_inputs(turn, event.header.time.ToDatetime())]
    return [*decided, expire(turn)] if event.HasField("turn_failed") else decided


def _content(event: TurnEvent) -> TurnEvent:
    """Returns an event without its header and ids, and without messages for people."""
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
