"""How events change a turn."""

from itertools import product

import pytest
from tests.unit.turn.driver import Driver, noop, request, says

from agentshell.turn import state
from agentshell.turn.decision import decide
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

KINDS = [field.name for field in e.TurnEvent.DESCRIPTOR.oneofs_by_name["event"].fields]


def under_way(*steps: t.Step) -> Driver:
    driver = Driver(request(*steps), lambda _: None)
    driver.run()
    return driver


def event(kind: str, **payload: object) -> e.TurnEvent:
    made = e.TurnEvent(turn_id="T")
    getattr(made, kind).SetInParent()
    for name, value in payload.items():
        if name in getattr(made, kind).DESCRIPTOR.fields_by_name:
            setattr(getattr(made, kind), name, value)
    return made


@pytest.mark.parametrize(
    ("turn_state", "kind"), [pair for pair in product(t.TurnState.values(), KINDS) if pair not in state.TURN_MOVES]
)
def test_an_event_that_the_table_of_turns_does_not_list_changes_nothing(
    turn_state: t.TurnState.ValueType, kind: str
) -> None:
    turn = under_way(noop("a")).turn
    turn.state = turn_state
    before = turn.SerializeToString(deterministic=True)
    assert not state.apply(turn, event(kind, step_id="T/a", attempt=1))
    assert turn.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("step_state", "kind"),
    [
        pair
        for pair in product(t.StepState.values(), [kind for kind in KINDS if kind.startswith(("step_", "plan_ext"))])
        if pair not in state.STEP_MOVES
    ],
)
def test_an_event_that_the_table_of_steps_does_not_list_changes_nothing(
    step_state: t.StepState.ValueType, kind: str
) -> None:
    turn = under_way(noop("a"), noop("b")).turn
    turn.plan.steps[0].state = step_state
    before = turn.SerializeToString(deterministic=True)
    assert not state.apply(turn, event(kind, step_id="T/a", attempt=2))
    assert turn.SerializeToString(deterministic=True) == before


def test_a_turn_retrieves_then_answers_then_completes() -> None:
    driver = Driver(request(knowledge_namespaces=["knowledge/guide"]), lambda step: says(step.step_id, 2, 5))
    turn = driver.run()
    assert driver.kinds() == [
        "turn_requested",
        "plan_created",
        "step_scheduled retrieve",
        "step_succeeded retrieve",
        "step_scheduled answer",
        "step_succeeded answer",
        "turn_completed",
    ]
    assert turn.output == says("T/answer").output
    assert (turn.usage.input_tokens, turn.usage.output_tokens, turn.usage.cost.amount_micros) == (4, 4, 10)
    assert decide(turn, driver.requested) == []


def test_a_result_for_a_settled_step_changes_nothing() -> None:
    driver = under_way(noop("a"))
    assert driver.settle("a", says("first"))
    before = driver.turn.SerializeToString(deterministic=True)
    assert not driver.settle("a", says("second"))
    assert driver.turn.SerializeToString(deterministic=True) == before


def test_a_success_after_a_failure_forgets_the_failure() -> None:
    driver = under_way(noop("a"))
    driver.settle("a", Failure(code=14, message="down"))
    driver.decide()
    driver.settle("a", says("up"))
    step = driver.step("a")
    assert (step.HasField("failure"), step.failure_count, step.attempt) == (False, 1, 2)


def test_independent_steps_run_together_and_a_step_waits_for_all_it_depends_on() -> None:
    driver = under_way(noop("a"), noop("b"), noop("c", "a", "b"))
    assert driver.states() == {"a": "SCHEDULED", "b": "SCHEDULED", "c": "UNSPECIFIED"}
    driver.settle("b", says("b"))
    assert driver.decide() == []
    driver.settle("a", says("a"))
    driver.decide()
    assert driver.states()["c"] == "SCHEDULED"


def test_an_end_that_was_decided_before_a_cancellation_was_read_counts() -> None:
    driver = under_way(noop("a"))
    driver.settle("a", says("a"))
    [end] = decide(driver.turn, driver.requested)
    driver.cancel()
    assert driver.write(end)
    assert driver.turn.state == t.TURN_STATE_COMPLETED


def test_the_cost_of_a_turn_is_unknown_when_one_steps_is() -> None:
    driver = Driver(request(noop("a"), noop("b")), lambda step: says("", 1, None if step.step_id == "T/a" else 1))
    usage = driver.run().usage
    assert (usage.HasField("cost"), usage.input_tokens) == (False, 2)
