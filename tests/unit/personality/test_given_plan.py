"""The plan that a pack defines."""

from __future__ import annotations

import contextlib
import json

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.personality.test_manifest_schema import PLAN

from agentshell.personality import pack
from agentshell.personality.pack import Pack
from agentshell.personality.yaml_file import PackError
from kfm.turn.v1.turn_pb2 import ON_FAILURE_CONTINUE, Plan

HEAD = "id: a\nversion: 1.0.0\nname: N\ndescription: D\nsystem_prompt: {template_file: prompt.md}\n"


def parse(plan: str) -> Pack:
    return pack.parse({"manifest.yaml": (HEAD + plan).encode(), "prompt.md": b"Be brief."})


def test_a_plan_is_read_as_the_contract_has_it_with_numbers_and_truths_as_such() -> None:
    plan = parse(PLAN).plan
    assert [step.step_id for step in plan.steps] == ["look", "sum", "say"]
    look, tool, say = plan.steps
    assert (look.memory.limit, look.timeout.seconds) == (3, 5)
    arguments = {"expression": "1+1", "deep": [1.0, True, None]}
    assert json_format.MessageToDict(tool.tool.arguments) == arguments
    assert (list(tool.depends_on), say.model.no_tools, say.on_failure) == (["look"], True, ON_FAILURE_CONTINUE)


def test_a_pack_without_steps_gives_no_plan() -> None:
    assert parse("plan: {strategy: planned}\n").plan == Plan()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("memory: {limit: 3}", "memory: {limits: 3}", 'manifest.yaml:8: plan.steps.0: Message type "kfm.turn.v1.Memo'),
        ("memory: {limit: 3}, ", "", "manifest.yaml:8: plan.steps[0]"),
        ("memory: {limit: 3}", "memory: {limit: 101}", "manifest.yaml:8: plan.steps[0].memory.limit: must be greater"),
        ("depends_on: [look]", "depends_on: [nobody]", "manifest.yaml:9: plan.steps[1].depends_on: 'nobody' is not a"),
        (
            "step_id: say",
            "step_id: look",
            "manifest.yaml:10: plan.steps[2].step_id: 'look' is already the id of another step",
        ),
        ("depends_on: [sum]", "attempt: 1", "manifest.yaml:10: plan.steps[2].attempt: is set by the shell; leave it"),
        ("memory: {limit: 3}", "approval: {question: Q, schema: {}}", "manifest.yaml:8: plan.steps[0].approval.schema"),
        ("memory: {limit: 3}", 'condition: "1 +", memory: {}', "manifest.yaml:8: plan.steps[0].condition: "),
        ("timeout: 5s", "timeout: soon", "manifest.yaml:8: plan.steps.0: Failed to parse timeout field"),
    ],
)
def test_what_is_wrong_with_a_step_is_named_with_its_line(old: str, new: str, expected: str) -> None:
    assert old in PLAN
    with pytest.raises(PackError) as caught:
        parse(PLAN.replace(old, new))
    assert str(caught.value).startswith(expected)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "arguments", "kind", "x"]), inner)
    ),
    max_leaves=5,
)
_steps = st.dictionaries(
    st.sampled_from(["step_id", "tool", "memory", "join", "depends_on", "timeout", "item", "retry"]), _values
)


@settings(max_examples=150)
@given(st.lists(_steps, max_size=3))
def test_any_steps_are_a_plan_or_a_pack_error(steps: list[dict[str, object]]) -> None:
    with contextlib.suppress(PackError):
        parse(f"plan: {json.dumps({'steps': steps})}\n")
