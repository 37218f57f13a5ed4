"""The expressions of a plan: CEL over the input and the steps' outputs. At most one loop, no I/O, no clock."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from agentshell.content import Plain, message_of, plain, plain_of, text_of
from kfm.content.v1.content_pb2 import ROLE_USER, Message
from kfm.turn.v1.turn_pb2 import Step, StepState, Turn

if TYPE_CHECKING:
    from cel import Program

MAX_ITEMS = 100
# They run in a manager's event loop: an expression may iterate over one list, without nesting.
_WALKS = re.compile(r"\.\s*(?:map|filter|all|exists|exists_one)\s*\(")
_MAX_WALKS = 1


def problem(source: str) -> str:
    """Returns what is wrong with an expression, as far as that shows without values, or an empty string."""
    if len(_WALKS.findall(source)) > _MAX_WALKS:
        return "iterates over more than one list; split the work into several steps"
    try:
        unknown = set(_compiled(source).variables()) - {"input", "outputs", "item"}
    except ValueError as error:
        return str(error)
    if unknown and not _WALKS.search(source):  # An iteration's variable is also among the names.
        return f"{min(unknown)!r} is not known; the known names are input, outputs and item"
    return ""


def holds(turn: Turn, step: Step) -> bool:
    """Returns whether the step's condition holds. Raises ValueError if it cannot be evaluated."""
    if not step.condition:
        return True
    value = _evaluate(turn, step, step.condition)
    if not isinstance(value, bool):
        raise ValueError(f"condition {step.condition!r} is not true or false, but {value!r:.100}")
    return value


def items(turn: Turn, step: Step) -> list[Plain]:
    """Returns what the step fans out over. Raises ValueError if that is not a list, or too long."""
    value = _evaluate(turn, step, step.fan_out)
    if not isinstance(value, list):
        raise ValueError(f"fan_out {step.fan_out!r} is not a list, but {value!r:.100}")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"fan_out {step.fan_out!r} has {len(value)} items, the limit is {MAX_ITEMS}")
    return value


def subject(turn: Turn, step: Step) -> Plain:
    """Returns what the step works on, or None if that is the turn's input. Raises ValueError."""
    if step.input:
        return _evaluate(turn, step, step.input)
    return plain(step.item) if step.HasField("item") else None


def input_of(turn: Turn, step: Step) -> Message:
    """Returns what the step works on, as a message. Raises ValueError."""
    value = subject(turn, step)
    return turn.input if value is None else message_of(value, ROLE_USER)


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Program:
    import cel

    return cel.compile(source)


def _evaluate(turn: Turn, step: Step, source: str) -> Plain:
    try:
        value = _compiled(source).execute(
            {
                "input": text_of(turn.input),
                "outputs": {_name(turn, other): _output(other) for other in turn.plan.steps if other.state},
                "item": plain(step.item) if step.HasField("item") else None,
            }
        )
        return json.loads(json.dumps(value, allow_nan=False))  # CEL has times, bytes and NaN; JSON does not.
    except Exception as error:  # The library has no exception type of its own: KeyError, RuntimeError, TypeError, ...
        # Its message may repeat an output, and the failure is stored: truncate it.
        raise ValueError(f"{source!r} has no value here: {type(error).__name__}: {error!s:.500}") from None


def _name(turn: Turn, step: Step) -> str:
    return step.step_id.removeprefix(f"{turn.turn_id}/")


def _output(step: Step) -> Plain:
    output = step.result.output
    passages = [part.passage for part in output.parts if part.HasField("passage")]
    return {
        "state": StepState.Name(step.state).removeprefix("STEP_STATE_"),
        "text": text_of(output),
        "json": plain_of(output),
        "passages": [{"title": each.title, "text": each.text, "source_uri": each.source_uri} for each in passages],
    }
