"""Decides whether an answer to a turn's question counts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.struct_pb2 import Struct

from agentshell.content import Plain, plain, text_of
from agentshell.schema import Schema
from agentshell.turn.decision import input_end_times
from agentshell.turn.state import is_over
from kfm.content.v1.content_pb2 import ROLE_USER, Message
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason
from kfm.turn.v1.turn_event_pb2 import InputProvided
from kfm.turn.v1.turn_pb2 import STEP_STATE_SUCCEEDED, ApprovalStep, Step, StepState, Turn, TurnState

# Schemas come from callers, and checks share a process with other callers' turns: their work must be bounded.
_MAX_SCHEMA_BYTES = 16 * 1024
_MAX_TYPED_CHARACTERS = 16 * 1024
_UNBOUNDED = frozenset(("$ref", "$dynamicRef", "unevaluatedItems", "unevaluatedProperties"))
_NAMED_SCHEMAS = frozenset(("properties", "$defs", "dependentSchemas"))
_DATA = frozenset(("const", "enum", "default", "examples"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an answer does not count. `field` names the request field to blame, if any."""

    reason: ErrorReason.ValueType
    message: str
    field: str = ""


def refusal(turn: Turn, answer: InputProvided, now: datetime) -> Refusal | None:
    """Returns why an answer given at `now`, in UTC, does not count, or None if it does."""
    step = next((step for step in turn.plan.steps if step.step_id == answer.step_id), None)
    if step is None or not step.HasField("approval"):
        waiting = ", ".join(input_end_times(turn)) or "no step"
        message = f"{answer.step_id!r} is not a question of turn {turn.turn_id}; {waiting} waits for an answer"
        return Refusal(error_pb2.ERROR_REASON_INVALID_REQUEST, message, "step_id")
    end = None if is_over(turn) else input_end_times(turn).get(step.step_id)
    if end is None:
        return _not_waiting(turn, step)
    if now >= end:
        message = f"step {step.step_id} waited for an answer until {end:%Y-%m-%d %H:%M:%S} UTC; start a new turn"
        return Refusal(error_pb2.ERROR_REASON_INPUT_EXPIRED, message)
    allowed = step.approval.principal_ids or [turn.principal_id]
    if answer.principal_id not in allowed:
        message = f"{answer.principal_id} may not answer step {step.step_id}; only {', '.join(allowed)} may"
        return Refusal(error_pb2.ERROR_REASON_PERMISSION_DENIED, message)
    field, message = _problem(step.approval, answer.input)
    return Refusal(error_pb2.ERROR_REASON_INVALID_REQUEST, message, field) if message else None


def schema_problem(schema: Struct) -> str:
    """Returns what is wrong with the schema of an answer, or an empty string."""
    if (size := schema.ByteSize()) > _MAX_SCHEMA_BYTES:
        return f"takes {size} bytes, the limit is {_MAX_SCHEMA_BYTES}"
    made = plain(schema)
    if keyword := next(_unbounded(made), ""):
        return f"has {keyword!r}, which takes unbounded work to check; express it without"
    try:
        Schema(made)
    except ValueError as error:
        return f"is not a JSON Schema: {error}"
    return ""


def _not_waiting(turn: Turn, step: Step) -> Refusal:
    if step.state == STEP_STATE_SUCCEEDED:
        message = f"step {step.step_id} has already been answered; the first answer counts"
    else:
        state = StepState.Name(step.state).removeprefix("STEP_STATE_") if step.state else "not begun"
        of_turn = TurnState.Name(turn.state).removeprefix("TURN_STATE_")
        message = f"step {step.step_id} does not wait for an answer: it is {state}, and its turn {of_turn}"
    return Refusal(error_pb2.ERROR_REASON_TURN_STATE, message)


def _problem(approval: ApprovalStep, given: Message) -> tuple[str, str]:
    """Returns what is wrong with an answer as (field, description), or empty strings."""
    text = text_of(given)
    if given.role != ROLE_USER:
        return "input.role", "must be ROLE_USER: an answer is a user's message"
    if not text.strip():
        return "input.parts", "has no text: give at least one part with a text that is not empty"
    if approval.choices and text not in approval.choices:
        return "input", f"{text!r:.100} is not one of {json.dumps(list(approval.choices), ensure_ascii=False)}"
    if approval.HasField("schema"):
        return "input", _mismatch(approval.schema, text)
    return "", ""


def _mismatch(schema: Struct, text: str) -> str:
    if len(text) > _MAX_TYPED_CHARACTERS:
        return f"has {len(text)} characters, the limit of an answer with a schema is {_MAX_TYPED_CHARACTERS}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "must be JSON that matches the step's schema"
    return Schema(plain(schema)).problem(value)


def _unbounded(schema: Plain) -> Iterator[str]:
    """Yields the keywords of a schema that could make a check unbounded or refer elsewhere."""
    match schema:
        case list():
            for each in schema:
                yield from _unbounded(each)
        case Mapping():
            for keyword, value in schema.items():
                if keyword in _UNBOUNDED:
                    yield keyword
                elif keyword in _NAMED_SCHEMAS and isinstance(value, Mapping):
                    yield from _unbounded(list(value.values()))
                elif keyword not in _DATA:
                    yield from _unbounded(value)
        case _:
            pass
