"""Plans grow: by a list to fan out over, and by plans that a model writes."""

import json

import pytest
from tests.unit.turn.driver import Driver, fails, noop, request, says

from agentshell.content import plain
from kfm.turn.v1 import turn_pb2 as t


def over(source: str, answer: str = "", **fields: object) -> Driver:
    """Runs a plan that fans out over a list."""
    each = noop("each", "list", fan_out=source, **fields)
    driver = Driver(request(noop("list"), each, noop("end", "each")), lambda _: says(answer))
    driver.run()
    return driver


def test_a_step_runs_for_each_item_and_who_waits_for_it_waits_for_all() -> None:
    driver = over("outputs.list.json.map(x, {'n': x})", "[1, 2.5]")
    assert driver.states() == {
        "list": "SUCCEEDED",
        "each": "EXPANDED",
        "each#0": "SUCCEEDED",
        "each#1": "SUCCEEDED",
        "end": "SUCCEEDED",
    }
    assert [plain(driver.step(f"each#{index}").item) for index in range(2)] == [{"n": 1}, {"n": 2.5}]
    assert list(driver.step("end").depends_on) == ["T/each#0", "T/each#1"]
    assert driver.turn.state == t.TURN_STATE_COMPLETED


def test_a_list_without_items_leaves_nothing_to_wait_for() -> None:
    assert over("[]").states() == {"list": "SUCCEEDED", "each": "EXPANDED", "end": "SUCCEEDED"}


@pytest.mark.parametrize(
    ("source", "answer", "told"),
    [
        ("outputs.list.json", json.dumps([1] * 101), "has 101 items, the limit is 100"),
        ("outputs.list.text", "abc", "is not a list, but 'abc'"),
        ("outputs.nobody.json", "", "has no value here: KeyError"),
        ("[b'x']", "", "is not JSON serializable"),
        ("outputs.list.json", "[NaN]", "not JSON compliant"),
    ],
)
def test_what_is_no_list_that_can_be_fanned_out_over_fails_the_step(source: str, answer: str, told: str) -> None:
    driver = over(source, answer)
    assert driver.turn.state == t.TURN_STATE_FAILED
    assert told in driver.turn.failure.message
    assert (driver.step("each").attempt, driver.step("end").state) == (0, t.STEP_STATE_SKIPPED)


def test_a_step_that_cannot_be_begun_may_be_done_without() -> None:
    driver = over("outputs.nobody.json", on_failure=t.ON_FAILURE_CONTINUE)
    assert driver.states() == {"list": "SUCCEEDED", "each": "FAILED", "end": "SUCCEEDED"}


def test_what_is_lost_is_settled_before_anything_else_begins() -> None:
    driver = Driver(request(noop("first"), noop("unfit", condition="input"), noop("last")))
    driver.run()
    assert driver.kinds() == ["turn_requested", "plan_created", "step_failed unfit", "turn_failed"]


def test_a_plan_that_grows_by_too_much_fails() -> None:
    driver = over("outputs.list.json", json.dumps(["x" * 30_000] * 20))
    assert driver.turn.failure.cause.message.startswith("step T/each makes the plan grow by ")


def test_a_model_writes_the_plan_that_is_run_before_the_answer() -> None:
    written = says("")
    written.plan.steps.extend([noop("look"), noop("sum-up", "look"), noop("aside"), noop("undo", compensates="look")])
    driver = Driver(
        request(strategy=t.PLAN_STRATEGY_PLANNED, knowledge_namespaces=["knowledge/guide"]),
        lambda step: written if step.HasField("plan") else says(step.step_id),
    )
    driver.run()
    assert driver.states() == {
        "retrieve": "SUCCEEDED",
        "plan": "SUCCEEDED",
        "plan#look": "SUCCEEDED",
        "plan#sum-up": "SUCCEEDED",
        "plan#aside": "SUCCEEDED",
        "plan#undo": "SKIPPED",
        "answer": "SUCCEEDED",
    }
    assert list(driver.step("answer").depends_on) == ["T/plan#sum-up", "T/plan#aside"], "not on what would be undone"
    assert driver.step("plan#undo").compensates == "T/plan#look"
    assert driver.turn.output == says("T/answer").output


def test_a_plan_that_a_model_could_not_write_fails_the_turn() -> None:
    driver = Driver(request(strategy=t.PLAN_STRATEGY_PLANNED), lambda _: fails(message="no plan"))
    driver.run()
    assert driver.turn.failure.message == "step T/plan failed in attempt 1: no plan"
