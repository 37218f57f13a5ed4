"""Which answers to a turn's questions count."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from agentshell.gateway import inputs
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Part, Text
from kfm.error.v1 import error_pb2 as r
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import InputProvided

ASKED = datetime(2026, 1, 1, 12, tzinfo=UTC).replace(tzinfo=None)
SOON = ASKED + timedelta(seconds=1)
NUMBER = {"type": "object", "properties": {"amount": {"type": "integer", "maximum": 10}}, "required": ["amount"]}


def struct(value: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(value)
    return made


def waiting(**approval: Any) -> t.Turn:
    """Returns a turn of ann's that waits a minute for an answer to `T/ask`, after `T/done`."""
    step = t.Step(step_id="T/ask", approval=t.ApprovalStep(question="May I?", **approval), attempt=1)
    step.approval.wait.FromSeconds(60)
    step.schedule_time.FromDatetime(ASKED)
    step.state = t.STEP_STATE_SCHEDULED
    done = t.Step(step_id="T/done", noop=t.NoopStep(), state=t.STEP_STATE_SUCCEEDED)
    return t.Turn(turn_id="T", principal_id="ann", state=t.TURN_STATE_WAITING, plan=t.Plan(steps=[done, step]))


def answer(text: str, principal_id: str = "ann", step_id: str = "T/ask") -> InputProvided:
    said = Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])
    return InputProvided(step_id=step_id, input=said, principal_id=principal_id)


def test_an_answer_in_time_by_whom_it_is_asked_of_counts() -> None:
    assert inputs.refusal(waiting(), answer("yes"), SOON) is None
    assert inputs.refusal(waiting(principal_ids=["bob"]), answer("yes", "bob"), SOON) is None
    assert inputs.refusal(waiting(choices=["yes", "no"]), answer("no"), SOON) is None
    assert inputs.refusal(waiting(schema=struct(NUMBER)), answer('{"amount": 3}'), SOON) is None


def test_an_answer_that_does_not_count_says_why() -> None:
    def why(turn: t.Turn, given: InputProvided, now: datetime = SOON) -> tuple[int, str]:
        refused = inputs.refusal(turn, given, now)
        assert refused is not None
        return refused.reason, refused.message

    reason, message = why(waiting(), answer("yes", step_id="T/done"))
    assert reason == r.ERROR_REASON_INVALID_REQUEST
    assert "T/ask waits for an answer" in message
    reason, message = why(waiting(), answer("yes"), ASKED + timedelta(seconds=60))
    assert reason == r.ERROR_REASON_INPUT_EXPIRED
    assert "until 2026-01-01 12:01:00" in message
    assert why(waiting(), answer("yes", "bob")) == (
        r.ERROR_REASON_PERMISSION_DENIED,
        "bob may not answer step T/ask; only ann may",
    )
    assert why(waiting(principal_ids=["bob", "eve"]), answer("yes"))[1].endswith("; only bob, eve may")


def test_a_step_that_does_not_wait_says_where_it_stands() -> None:
    turn = waiting()
    for state, of_turn, told in (
        (t.STEP_STATE_SUCCEEDED, t.TURN_STATE_RUNNING, "already been answered"),
        (t.STEP_STATE_UNSPECIFIED, t.TURN_STATE_RUNNING, "not begun, and its turn RUNNING"),
        (t.STEP_STATE_SCHEDULED, t.TURN_STATE_CANCELLED, "SCHEDULED, and its turn CANCELLED"),
    ):
        turn.plan.steps[1].state, turn.state = state, of_turn
        refused = inputs.refusal(turn, answer("yes"), SOON)
        assert refused is not None
        assert refused.reason == r.ERROR_REASON_TURN_STATE
        assert told in refused.message


@pytest.mark.parametrize(
    ("approval", "text", "told"),
    [
        ({"choices": ["yes", "no"]}, "maybe", '\'maybe\' is not one of ["yes", "no"]'),
        ({"schema": struct(NUMBER)}, "ten", "must be JSON"),
        ({"schema": struct(NUMBER)}, "[" * 100_000, "the limit of an answer with a schema"),
        ({"schema": struct(NUMBER)}, "[" * 10_000, "must be JSON"),
        ({"schema": struct(NUMBER)}, '{"amount": 11}', "$.amount: 11 is greater than the maximum of 10"),
        ({"schema": struct(NUMBER)}, json.dumps({"amount": "x" * 10_000}), '$.amount: "xxx'),
        ({}, " ", "has no text"),
    ],
)
def test_an_answer_must_be_one_of_those_there_are(approval: dict[str, Any], text: str, told: str) -> None:
    refused = inputs.refusal(waiting(**approval), answer(text), SOON)
    assert refused is not None
    assert refused.reason == r.ERROR_REASON_INVALID_REQUEST
    assert refused.field.startswith("input")
    assert told in refused.message
    assert len(refused.message) <= 300


def test_an_answer_is_what_a_user_says() -> None:
    given = answer("yes")
    given.input.role = ROLE_ASSISTANT
    refused = inputs.refusal(waiting(), given, SOON)
    assert refused is not None
    assert refused.field == "input.role"


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (NUMBER, ""),
        ({"type": "object", "properties": {"$ref": {"const": {"pattern": "x"}}}}, ""),
        ({"type": "nothing"}, "is not a JSON Schema: $.type"),
        ({"anyOf": [{"items": {"$ref": "#"}}]}, "has '$ref'"),
        ({"properties": {"a": {"patternProperties": {"(a+)+$": {}}}}}, ""),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "is not a JSON Schema: $.properties.a.pattern"),
        ({"const": "x" * 20_000}, "the limit is 16384"),
    ],
)
def test_a_schema_is_checked_before_anybody_is_asked(schema: dict[str, Any], told: str) -> None:
    problem = inputs.schema_problem(struct(schema))
    assert told in problem
    assert bool(told) == bool(problem)
