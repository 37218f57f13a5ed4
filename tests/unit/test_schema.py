"""Schemas written by strangers."""

from __future__ import annotations

from typing import Any

import pytest

from agentshell.schema import Schema


def test_what_breaks_a_schema_is_said_with_where() -> None:
    schema = Schema({"properties": {"steps": {"items": {"type": "string"}}}, "required": ["id"]})
    assert sorted(schema.problems({"steps": ["a", 1]})) == [
        '$.steps[1]: 1 is not of type "string"',
        '$: "id" is a required property',
    ]
    assert schema.problem({"id": 1, "steps": []}) == ""


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "text"}, "$.type: "),
        ({"$ref": "http://127.0.0.1:9/secret"}, "must not refer to anything outside"),
        ({"$ref": "file:///etc/passwd"}, "must not refer to anything outside"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, "$.properties.a.pattern: "),
    ],
)
def test_what_is_no_schema_or_looks_elsewhere_is_refused(schema: Any, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        Schema(schema)
    assert problem in str(caught.value)


def test_a_hostile_pattern_takes_no_time() -> None:
    """Backtracking would run into the suite's own time limit."""
    assert Schema({"pattern": "^(a+)+$"}).problem("a" * 10_000 + "!")
