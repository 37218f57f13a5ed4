"""How events change a turn."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.turn import decision, plan, state
from agentshell.turn.state import apply
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, Part, Text, Usage
from kfm.error.v1.error_pb2 import ERROR_REASON_PROVIDER_UNAVAILABLE, Failure
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1 import turn_pb2 as t

TURN_ID = "T"


def requested(**changes: Any) -> e.TurnRequested:
    limits = t.TurnLimits(max_steps=10, max_attempts=3)
    limits.max_duration.FromSeconds(120)
    asked = Message(role=ROLE_USER, parts=[Part(text=Text(text="hello"))])
    return e.TurnRequested(input=asked, limits=limits, principal_id="ann", personality_id="guide", **changes)


def event(**payload: Any) -> e.TurnEvent:
    return e.TurnEvent(turn_id=TURN_ID, **payload)


def begun(request: e.TurnRequested) -> t.Turn:
    turn = t.Turn()
    assert apply(turn, event(turn_requested=request))
    return turn


def decide_and_apply(turn: t.Turn, request: e.TurnRequested) -> list[e.TurnEvent]:
    decided: list[e.TurnEvent] = []
    while events := decision.decide(turn, request):
        for made in events:
            made.turn_id = TURN_ID
            assert apply(turn, made), "a decision always changes the turn"
            decided.append(made)
    return decided


def scheduled(turn: t.Turn) -> list[tuple[str, int]]:
    return [(s.step_id, s.attempt) for s in turn.plan.steps if s.state == t.STEP_STATE_SCHEDULED]


def succeed(turn: t.Turn, step_id: str, attempt: int, text: str = "done") -> bool:
    output = Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text=text))])
    result = t.StepResult(output=output, usage=Usage(input_tokens=2, output_tokens=1))
    result.usage.cost.amount_micros = 5
    return apply(turn, event(step_succeeded=e.StepSucceeded(step_id=step_id, attempt=attempt, result=result)))


def fail(turn: t.Turn, step_id: str, attempt: int, code: int = 14) -> bool:
    failure = Failure(code=code, reason=ERROR_REASON_PROVIDER_UNAVAILABLE, message="down")  # pyright: ignore[reportArgumentType] - a code
    return apply(turn, event(step_failed=e.StepFailed(step_id=step_id, attempt=attempt, failure=failure)))


def test_a_turn_retrieves_then_answers_then_completes() -> None:
    request = requested(knowledge_namespaces=["knowledge/guide"])
    turn = begun(request)
    decide_and_apply(turn, request)
    assert scheduled(turn) == [("T/retrieve", 1)]
    succeed(turn, "T/retrieve", 1)
    decide_and_apply(turn, request)
    assert scheduled(turn) == [("T/answer", 1)]
    succeed(turn, "T/answer", 1, "the answer")
    decide_and_apply(turn, request)
    assert turn.state == t.TURN_STATE_COMPLETED
    assert turn.output.parts[0].text.text == "the answer"
    assert (turn.usage.input_tokens, turn.usage.output_tokens, turn.usage.cost.amount_micros) == (4, 2, 10)


def test_a_result_for_a_settled_step_changes_nothing() -> None:
    request = requested()
    turn = begun(request)
    decide_and_apply(turn, request)
    assert succeed(turn, "T/answer", 1, "first")
    before = turn.SerializeToString(deterministic=True)
    assert not succeed(turn, "T/answer", 1, "second")
    assert not fail(turn, "T/answer", 1)
    assert turn.SerializeToString(deterministic=True) == before


def test_a_transient_failure_is_tried_again_up_to_the_limit_and_then_fails_the_turn() -> None:
    request = requested()
    turn = begun(request)
    decide_and_apply(turn, request)
    for attempt in (1, 2):
        assert fail(turn, "T/answer", attempt)
        decide_and_apply(turn, request)
        assert scheduled(turn) == [("T/answer", attempt + 1)]
    fail(turn, "T/answer", 3)
    decide_and_apply(turn, request)
    assert turn.state == t.TURN_STATE_FAILED
    assert turn.failure.cause.message == "down"
    assert turn.failure.metadata["step_id"] == "T/answer"


def test_a_failure_that_does_not_pass_fails_the_turn_at_once() -> None:
    request = requested()
    turn = begun(request)
    decide_and_apply(turn, request)
    fail(turn, "T/answer", 1, code=3)
    decide_and_apply(turn, request)
    assert turn.state == t.TURN_STATE_FAILED


def test_the_back_off_grows_and_respects_what_the_failure_asks_for() -> None:
    request = requested()
    turn = begun(request)
    decide_and_apply(turn, request)
    fail(turn, "T/answer", 1)
    [again] = decide_and_apply(turn, request)
    assert again.step_scheduled.start_delay.ToTimedelta().total_seconds() == 0.2
    failure = Failure(code=8, message="slow down")  # pyright: ignore[reportArgumentType] - a code
    failure.retry_delay.FromSeconds(7)
    apply(turn, event(step_failed=e.StepFailed(step_id="T/answer", attempt=2, failure=failure)))
    [again] = decide_and_apply(turn, request)
    assert again.step_scheduled.start_delay.ToTimedelta().total_seconds() == 7


def test_independent_steps_run_together_and_a_step_waits_for_all_it_depends_on() -> None:
    steps = [
        t.Step(step_id="a", noop=t.NoopStep()),
        t.Step(step_id="b", noop=t.NoopStep()),
        t.Step(step_id="c", depends_on=["a", "b"], noop=t.NoopStep()),
    ]
    request = requested(plan=t.Plan(steps=steps))
    turn = begun(request)
    decide_and_apply(turn, request)
    assert scheduled(turn) == [("T/a", 1), ("T/b", 1)]
    succeed(turn, "T/b", 1)
    assert decide_and_apply(turn, request) == []
    succeed(turn, "T/a", 1)
    decide_and_apply(turn, request)
    assert scheduled(turn) == [("T/c", 1)]


def test_a_turn_goes_on_without_a_step_that_may_fail() -> None:
    steps = [
        t.Step(step_id="a", on_failure=t.ON_FAILURE_CONTINUE, noop=t.NoopStep()),
        t.Step(step_id="b", depends_on=["a"], noop=t.NoopStep()),
    ]
    request = requested(plan=t.Plan(steps=steps))
    turn = begun(request)
    decide_and_apply(turn, request)
    fail(turn, "T/a", 1, code=3)
    decide_and_apply(turn, request)
    assert scheduled(turn) == [("T/b", 1)]


def test_a_plan_longer_than_the_limit_fails_the_turn() -> None:
    steps = [t.Step(step_id=f"s{i}", noop=t.NoopStep()) for i in range(11)]
    request = requested(plan=t.Plan(steps=steps))
    turn = begun(request)
    decide_and_apply(turn, request)
    assert turn.state == t.TURN_STATE_FAILED
    assert "limit is 10" in turn.failure.message


def test_a_new_owner_restarts_interrupted_steps_with_the_next_attempt() -> None:
    request = requested()
    turn = begun(request)
    decide_and_apply(turn, request)
    [again] = decision.restart(turn)
    assert (again.step_scheduled.step_id, again.step_scheduled.attempt) == ("T/answer", 2)
    again.turn_id = TURN_ID
    apply(turn, again)
    assert turn.plan.steps[0].failure_count == 0, "an interruption is no failure"
    assert succeed(turn, "T/answer", 1, "the first attempt was not dead after all")
    decide_and_apply(turn, request)
    assert turn.state == t.TURN_STATE_COMPLETED


def test_a_cancelled_turn_skips_what_never_ran() -> None:
    request = requested(knowledge_namespaces=["knowledge/guide"])
    turn = begun(request)
    decide_and_apply(turn, request)
    apply(turn, event(turn_cancel_requested=e.TurnCancelRequested(message="enough")))
    assert turn.state == t.TURN_STATE_CANCELLING
    decide_and_apply(turn, request)
    assert turn.state == t.TURN_STATE_CANCELLED
    assert [step.state for step in turn.plan.steps] == [t.STEP_STATE_SCHEDULED, t.STEP_STATE_SKIPPED]


def test_an_end_that_was_decided_before_a_cancellation_was_read_counts() -> None:
    request = requested()
    turn = begun(request)
    decide_and_apply(turn, request)
    succeed(turn, "T/answer", 1)
    [end] = decision.decide(turn, request)
    end.turn_id = TURN_ID
    apply(turn, event(turn_cancel_requested=e.TurnCancelRequested()))
    assert apply(turn, end)
    assert turn.state == t.TURN_STATE_COMPLETED


def test_the_cost_of_a_turn_is_unknown_when_one_steps_is() -> None:
    request = requested(knowledge_namespaces=["knowledge/guide"])
    turn = begun(request)
    decide_and_apply(turn, request)
    succeed(turn, "T/retrieve", 1)
    decide_and_apply(turn, request)
    unknown = t.StepResult(usage=Usage(input_tokens=1))
    apply(turn, event(step_succeeded=e.StepSucceeded(step_id="T/answer", attempt=1, result=unknown)))
    assert not state.usage_of(turn).HasField("cost")


@st.composite
def histories(draw: st.DrawFn) -> tuple[e.TurnRequested, list[e.TurnEvent]]:
    """A turn of random shape, run to its end with random results, cancellations and restarts on the way."""
    count = draw(st.integers(1, 5))
    steps = [
        t.Step(
            step_id=f"s{i}",
            depends_on=[f"s{j}" for j in range(i) if draw(st.booleans())],
            on_failure=draw(st.sampled_from([t.ON_FAILURE_FAIL_TURN, t.ON_FAILURE_CONTINUE])),
            noop=t.NoopStep(),
        )
        for i in range(count)
    ]
    request = requested(plan=t.Plan(steps=steps))
    history = [event(turn_requested=request)]
    turn = begun(request)
    for _ in range(60):
        history += decide_and_apply(turn, request)
        if state.is_over(turn):
            break
        step_id, attempt = draw(st.sampled_from(scheduled(turn)))
        match draw(st.integers(0, 9)):
            case 0:
                news = event(turn_cancel_requested=e.TurnCancelRequested())
            case 1:
                news = decision.restart(turn)[0]
                news.turn_id = TURN_ID
            case 2 | 3 | 4:
                code = draw(st.sampled_from([3, 14]))
                news = event(step_failed=e.StepFailed(step_id=step_id, attempt=attempt, failure=Failure(code=code)))
            case _:
                news = event(step_succeeded=e.StepSucceeded(step_id=step_id, attempt=attempt, result=t.StepResult()))
        history.append(news)
        apply(turn, news)
    return request, history


@settings(max_examples=200, deadline=None)
@given(histories())
def test_every_turn_ends_and_nothing_follows_its_end(made: tuple[e.TurnRequested, list[e.TurnEvent]]) -> None:
    request, history = made
    turn = t.Turn()
    for happened in history:
        apply(turn, happened)
    assert state.is_over(turn)
    assert decision.decide(turn, request) == []


@settings(max_examples=200, deadline=None)
@given(histories(), st.data())
def test_events_written_twice_change_nothing(
    made: tuple[e.TurnRequested, list[e.TurnEvent]], data: st.DataObject
) -> None:
    _, history = made
    once, twice = t.Turn(), t.Turn()
    for index, happened in enumerate(history):
        apply(once, happened)
        apply(twice, happened)
        apply(twice, history[data.draw(st.integers(0, index))])
    assert twice == once


def test_plans_are_checked_for_names_edges_and_cycles() -> None:
    def step(step_id: str, *needs: str) -> t.Step:
        return t.Step(step_id=step_id, depends_on=needs, noop=t.NoopStep())

    assert plan.problems(t.Plan(steps=[step("a"), step("b", "a")])) == []
    assert plan.problems(t.Plan(steps=[step("a"), step("a")])) == [
        ("plan.steps[1].step_id", "'a' names another step already")
    ]
    assert plan.problems(t.Plan(steps=[step("a", "x")])) == [
        ("plan.steps[0].depends_on", "'x' is not a step of the plan")
    ]
    assert plan.problems(t.Plan(steps=[step("a", "b"), step("b", "a"), step("c")])) == [
        ("plan.steps", "'a' depends on itself, by way of others"),
        ("plan.steps", "'b' depends on itself, by way of others"),
    ]
    assert (
        plan.unsupported(t.Plan(steps=[t.Step(step_id="x", tool=t.ToolStep(name="clock"))]))
        == "a step of kind 'tool' (x)"
    )
