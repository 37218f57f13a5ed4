"""Answers that must be JSON that matches a schema."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from agentshell.content import text_of
from agentshell.provider import output_schema
from agentshell.provider.output_schema import OutputSchema
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Part, Text
from kfm.provider.v1 import provider_service_pb2 as pb


def asks(schema: dict[str, Any]) -> pb.Generation:
    made = Struct()
    made.update(schema)
    question = Message(role=ROLE_USER, parts=[Part(text=Text(text="How many?"))])
    return pb.Generation(messages=[question], output_schema=made)


def says(text: str, reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP) -> pb.GenerateResponse:
    message = Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text=text))])
    return pb.GenerateResponse(message=message, finish_reason=reason)


COUNT = asks({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (says('{"n": 3}'), ""),
        (says('{"n": 3.0}'), ""),
        (says('{"n": "3"}'), '$.n: "3" is not of type "integer"'),
        (says("Three."), "not JSON (Expecting value: line 1 column 1 (char 0))"),
        (says("[" * 100_000), "not JSON"),
        (says('{"n":', pb.FINISH_REASON_LENGTH), "not JSON"),
        (says("I look it up.", pb.FINISH_REASON_TOOL_CALLS), ""),
        (says("", pb.FINISH_REASON_CONTENT_FILTER), ""),
    ],
)
def test_an_answer_is_checked_where_the_schema_is_about_it(answer: pb.GenerateResponse, problem: str) -> None:
    told = OutputSchema(COUNT).problem(answer)
    assert told.startswith(problem)
    assert bool(told) == bool(problem)


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\$.type"):
        OutputSchema(asks({"type": "number of things"}))


def test_a_repair_shows_the_answer_and_its_problem_and_leaves_the_request_alone() -> None:
    before = COUNT.SerializeToString(deterministic=True)
    answer = says("Three.")

    again = output_schema.repaired(COUNT, answer, "not JSON")

    assert [message.role for message in again.messages] == [ROLE_USER, ROLE_ASSISTANT, ROLE_USER]
    assert again.messages[1] == answer.message
    assert "not JSON" in text_of(again.messages[2])
    assert again.output_schema == COUNT.output_schema
    assert COUNT.SerializeToString(deterministic=True) == before
