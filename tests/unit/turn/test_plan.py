"""Faults in a plan are reported before anything runs."""

import pytest
from tests.unit.turn.driver import noop

from agentshell.turn import plan
from kfm.turn.v1 import turn_pb2 as t

ASK = t.Step(step_id="ask", approval=t.ApprovalStep(question="?"))
TWO = t.Join(quorum=t.JoinQuorum(count=2))


@pytest.mark.parametrize(
    ("steps", "field", "told"),
    [
        ([noop("a"), noop("a")], "[1].step_id", "'a' is already the id of another step"),
        ([noop("a", "x")], "[0].depends_on", "'x' is not a step of the plan"),
        ([noop("a", condition="1 +")], "[0].condition", "Failed to parse expression '1 +'"),
        (
            [noop("a", input="output.b")],
            "[0].input",
            "'output' is not known; the known names are input, outputs and item",
        ),
        (
            [noop("a", fan_out="[1].map(x, [2].map(y, x))"), noop("b", "a")],
            "[0].fan_out",
            "iterates over more than one list",
        ),
        ([noop("a", fan_out="[1]")], "[0].fan_out", "no step depends on 'a'"),
        ([noop("a"), noop("b", "a", join=TWO)], "[1].join.quorum.count", "more than the 1 steps that 'b' depends on"),
        (
            [noop("a"), noop("b", "a", fan_out="[1]", join=TWO), noop("c", "b")],
            "[1].join.quorum.count",
            "more than the 1 steps",
        ),
        ([noop("a"), noop("b", "u"), noop("u", compensates="a")], "[1].compensates", "'b' depends on a compensation"),
        (
            [noop("u", compensates="x")],
            "[0].compensates",
            "'x' must be a step of the plan that nothing else compensates",
        ),
        (
            [noop("a"), noop("u", compensates="a"), noop("v", compensates="a")],
            "[2].compensates",
            "nothing else compensates",
        ),
        (
            [noop("a"), noop("u", compensates="a"), noop("v", compensates="u")],
            "[2].compensates",
            "nothing else compensates",
        ),
        (
            [noop("a", fan_out="[1]"), noop("b", "a"), noop("u", compensates="a")],
            "[2].compensates",
            "'a' fans out; undo what it does within one step",
        ),
        ([noop("a"), noop("u", "a", compensates="a")], "[1].compensates", "a compensation must not have depends_on"),
        ([noop("a", "b"), noop("b", "a"), noop("c")], "", "'a' depends on itself, through other steps"),
        ([noop("a", "a")], "", "'a' depends on itself, through other steps"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(steps: list[t.Step], field: str, told: str) -> None:
    found = plan.problems(t.Plan(steps=steps))
    assert f"plan.steps{field}" in [name for name, _ in found]
    assert any(told in text for _, text in found), found


@pytest.mark.parametrize(
    "steps",
    [
        [noop("a"), noop("b", "a")],
        [noop("b", "a"), noop("a")],
        [noop("a", fan_out="[1, 2]"), noop("b", "a", join=TWO)],
        [t.Step(step_id="a", plan=t.PlanStep()), noop("b", "a", join=TWO)],
        [noop("a", condition="outputs.b.json.items.exists(x, x == item)", input="input")],
        [ASK, noop("a", "ask"), noop("u", compensates="a")],
    ],
)
def test_a_plan_that_can_be_run_has_no_problems(steps: list[t.Step]) -> None:
    assert plan.problems(t.Plan(steps=steps)) == []


def test_the_turn_is_put_before_each_name() -> None:
    steps = [noop("a"), noop("b", "a"), noop("u", compensates="a"), noop("g", grown_from="a")]
    steps += [
        t.Step(step_id="m", model=t.ModelStep(continues="a")),
        t.Step(step_id="t", tool=t.ToolStep(asked_by="a")),
    ]
    owned = plan.own("T", t.Plan(steps=steps)).steps
    assert [step.step_id for step in owned] == ["T/a", "T/b", "T/u", "T/g", "T/m", "T/t"]
    assert [owned[1].depends_on[0], owned[2].compensates, owned[3].grown_from] == ["T/a"] * 3
    assert [owned[4].model.continues, owned[5].tool.asked_by] == ["T/a"] * 2
