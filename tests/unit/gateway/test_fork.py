"""What a fork shares with its source turn, and what it does not."""

from __future__ import annotations

from typing import Any

from agentshell.gateway import fork
from agentshell.turn import plan
from agentshell.turn.decision import decide
from agentshell.turn.growth import by_items, by_result
from agentshell.turn.state import apply
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Money, Part, Text, ToolCall
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_service_pb2 import TurnSpec


def said(text: str) -> Message:
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


def step(name: str, *needs: str, model: t.ModelStep | None = None, **changes: Any) -> t.Step:
    return t.Step(step_id=name, depends_on=needs, model=model, noop=None if model else t.NoopStep(), **changes)


def running(*steps: t.Step) -> t.Turn:
    return t.Turn(turn_id="T", state=t.TURN_STATE_RUNNING, plan=plan.own("T", t.Plan(steps=steps)))


def happens(turn: t.Turn, event: e.TurnEvent) -> None:
    event.turn_id = turn.turn_id
    assert apply(turn, event)


def begin(turn: t.Turn, name: str) -> None:
    happens(turn, e.TurnEvent(step_scheduled=e.StepScheduled(step_id=f"T/{name}", attempt=1)))


def succeed(turn: t.Turn, name: str, output: Message | None = None) -> None:
    begin(turn, name)
    result = t.StepResult(output=output or said(name))
    happens(turn, e.TurnEvent(step_succeeded=e.StepSucceeded(step_id=f"T/{name}", attempt=1, result=result)))


def fail(turn: t.Turn, name: str) -> None:
    begin(turn, name)
    happens(turn, e.TurnEvent(step_failed=e.StepFailed(step_id=f"T/{name}", attempt=1, failure=Failure(message="no"))))


def states(shared: t.Plan) -> dict[str, t.StepState.ValueType]:
    return {each.step_id: each.state for each in shared.steps}


def test_what_is_done_is_shared_and_what_was_under_way_begins_anew() -> None:
    source = [step("done"), step("under-way"), step("failed"), step("last", "done", "under-way", "failed")]
    turn = running(*source)
    succeed(turn, "done")
    begin(turn, "under-way")
    fail(turn, "failed")
    shared = fork.past(turn)
    source[0].CopyFrom(turn.plan.steps[0])
    source[0].step_id = "done"
    assert source[0].result.output == said("done")
    assert list(shared.steps) == source


def test_a_failure_that_a_later_step_has_dealt_with_is_part_of_the_past() -> None:
    turn = running(step("try", on_failure=t.ON_FAILURE_CONTINUE), step("then", "try"))
    fail(turn, "try")
    succeed(turn, "then")
    shared = fork.past(turn)
    assert states(shared) == {"try": t.STEP_STATE_FAILED, "then": t.STEP_STATE_SUCCEEDED}
    assert shared.steps[0].failure.message == "no"


def test_a_plan_that_has_grown_is_shared_with_names_of_the_fork() -> None:
    turn = running(step("fan", fan_out="[1, 2]"), step("ask", "fan", model=t.ModelStep()), step("end", "ask"))
    happens(turn, e.TurnEvent(plan_extended=by_items(turn.plan.steps[0], [1, 2])))
    succeed(turn, "fan#0")
    succeed(turn, "fan#1")
    call = Message(role=ROLE_ASSISTANT, parts=[Part(tool_call=ToolCall(call_id="c", name="clock"))])
    succeed(turn, "ask", call)
    grown = by_result(next(each for each in turn.plan.steps if each.step_id == "T/ask"))
    assert grown is not None
    happens(turn, e.TurnEvent(plan_extended=grown))
    shared = fork.past(turn)
    assert "T/" not in str(shared)
    requested = e.TurnRequested(plan=shared)
    forked = t.Turn(turn_id="F", state=t.TURN_STATE_REQUESTED, limits=t.TurnLimits(max_steps=25))
    [planned] = decide(forked, requested)
    renamed = str(turn.plan).replace('"T/', '"F/')
    assert str(planned.plan_created.plan) == renamed
    happens(forked, planned)
    assert [event.step_scheduled.step_id for event in decide(forked, requested)] == ["F/ask#1.0"]


def test_a_plan_that_a_pack_gave_stays_with_its_personality() -> None:
    source = e.TurnRequested(personality_id="a", plan=t.Plan(plan_id=plan.PACK_PLAN, steps=[step("a")]))
    assert fork.spec(source, TurnSpec()).plan == source.plan
    assert not fork.spec(source, TurnSpec(personality_id="b")).HasField("plan")


def test_a_fork_is_asked_for_what_differs_and_the_rest_as_it_was() -> None:
    source = e.TurnRequested(
        input=said("before"),
        personality_id="guide",
        model=t.ModelChoice(provider="openai", model="m"),
        limits=t.TurnLimits(max_steps=5, max_tokens=10, max_cost=Money(currency_code="USD", amount_micros=7)),
        strategy=t.PLAN_STRATEGY_DIRECT,
        priority=t.PRIORITY_LOW,
        plan=t.Plan(steps=[step("a")]),
    )
    source.limits.max_duration.FromMilliseconds(700)
    same = TurnSpec(
        input=source.input,
        personality_id="guide",
        model=source.model,
        limits=source.limits,
        strategy=source.strategy,
        priority=source.priority,
        plan=source.plan,
    )
    assert fork.spec(source, TurnSpec()) == same

    changes = TurnSpec(
        session_id="s",
        input=said("after"),
        model=t.ModelChoice(provider="local"),
        limits=t.TurnLimits(max_tokens=99, max_cost=Money(amount_micros=8)),
        strategy=t.PLAN_STRATEGY_PLANNED,
        priority=t.PRIORITY_HIGH,
    )
    changes.limits.max_duration.FromSeconds(5)
    wanted = TurnSpec(personality_id="guide")
    wanted.MergeFrom(changes)
    wanted.limits.max_steps = 5
    assert fork.spec(source, changes) == wanted
    source.fork.step_id = "T/a"
    assert not fork.spec(source, TurnSpec()).plan.steps, "the plan of a fork is a past, and not its caller's"
