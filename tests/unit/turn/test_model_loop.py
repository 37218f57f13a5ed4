"""A model calls tools, gets their results and is asked again, until it calls none."""

from tests.unit.turn.driver import Driver, asks, fails, noop, request, says

from agentshell.content import calls_of
from kfm.turn.v1 import turn_pb2 as t


def looping(rounds: dict[str, t.StepResult], *steps: t.Step) -> Driver:
    driver = Driver(request(*steps), lambda step: rounds.get(step.step_id) or says("tool"))
    driver.run()
    return driver


def test_the_tools_of_a_round_run_together_and_the_model_goes_on_after_them() -> None:
    driver = looping({"T/answer": asks("clock", "calculator", a=1), "T/answer#2": says("42")})
    assert driver.kinds() == [
        "turn_requested",
        "plan_created",
        "step_scheduled answer",
        "step_succeeded answer",
        "plan_extended answer",
        "step_scheduled answer#1.0",
        "step_scheduled answer#1.1",
        "step_succeeded answer#1.0",
        "step_succeeded answer#1.1",
        "step_scheduled answer#2",
        "step_succeeded answer#2",
        "turn_completed",
    ]
    first, second = driver.step("answer#1.0"), driver.step("answer#2")
    assert (first.tool.name, first.tool.asked_by, first.tool.call.call_id) == ("clock", "T/answer", "call-0")
    assert not first.tool.call.HasField("arguments"), "they stay in the model's output"
    assert calls_of(driver.step("answer").result.output)[0].arguments["a"] == 1
    assert second.model.continues == "T/answer"
    assert list(second.depends_on) == ["T/answer#1.0", "T/answer#1.1"]
    assert driver.turn.output == says("42").output


def test_a_tool_that_fails_is_the_models_to_deal_with() -> None:
    driver = Driver(
        request(),
        lambda step: fails() if step.HasField("tool") else asks("clock") if step.step_id == "T/answer" else says("so"),
    )
    driver.run()
    assert driver.states() == {"answer": "SUCCEEDED", "answer#1.0": "FAILED", "answer#2": "SUCCEEDED"}
    assert driver.turn.state == t.TURN_STATE_COMPLETED


def test_rounds_are_numbered_and_who_waits_for_the_model_waits_for_its_last_round() -> None:
    ask = t.Step(step_id="ask", model=t.ModelStep(instructions="be brief"), on_failure=t.ON_FAILURE_CONTINUE)
    ask.timeout.FromSeconds(9)
    ask.retry.max_attempts = 2
    rounds = {"T/ask": asks("clock"), "T/ask#2": asks("clock"), "T/ask#3": says("noon")}
    driver = looping(rounds, ask, noop("after", "ask"))
    assert list(driver.states()) == ["ask", "ask#1.0", "ask#2", "ask#2.0", "ask#3", "after"]
    assert list(driver.step("after").depends_on) == ["T/ask#3"]
    last = driver.step("ask#3")
    assert (last.model.instructions, last.model.continues) == ("be brief", "T/ask#2")
    assert (last.timeout, last.retry, last.on_failure) == (ask.timeout, ask.retry, ask.on_failure)


def test_a_model_in_a_fan_out_has_a_loop_of_its_own_for_each_item() -> None:
    each = t.Step(step_id="each", model=t.ModelStep(), fan_out="[1, 2]")
    driver = looping({"T/each#0": asks("clock"), "T/each#0#2": says("one")}, each, noop("end", "each"))
    assert list(driver.states()) == ["each", "each#0", "each#0#1.0", "each#0#2", "each#1", "end"]
    assert driver.step("each#0#2").item == driver.step("each#0").item
    assert sorted(driver.step("end").depends_on) == ["T/each#0#2", "T/each#1"]
