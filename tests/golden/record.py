"""Rerecords the golden histories: `python -m tests.golden.record`. A change in them is a change of behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from google.protobuf import json_format
from tests.unit.turn.driver import UNAVAILABLE, Driver, asks, fails, noop, request, says

from kfm.turn.v1 import turn_pb2 as t

HISTORIES = Path(__file__).parent / "histories"
_KNOWLEDGE = ["knowledge/guide"]


def direct() -> Driver:
    """Retrieve, answer."""
    driver = Driver(request(knowledge_namespaces=_KNOWLEDGE))
    driver.run()
    return driver


def model_loop() -> Driver:
    """Two rounds of tools, one of which fails."""
    rounds = {"T/answer": asks("clock", "calculator"), "T/answer#2": asks("clock"), "T/answer#3": says("It is noon.")}

    def answer(step: t.Step) -> t.StepResult:
        return rounds.get(step.step_id) or says("12:00")

    driver = Driver(
        request(knowledge_namespaces=_KNOWLEDGE),
        lambda step: fails() if step.step_id == "T/answer#1.1" else answer(step),
    )
    driver.run()
    return driver


def planned() -> Driver:
    """A model writes two steps, and answers after them."""
    written = says("")
    written.plan.steps.extend([noop("look"), noop("sum-up", "look")])
    driver = Driver(
        request(strategy=t.PLAN_STRATEGY_PLANNED),
        lambda step: written if step.HasField("plan") else says(step.step_id),
    )
    driver.run()
    return driver


def fan_out() -> Driver:
    """A list, a step for each of its items, one that joins them, and a branch that is not taken."""
    each = noop("each", "list", fan_out="outputs.list.json", on_failure=t.ON_FAILURE_CONTINUE)
    together = noop("together", "each", join=t.Join(quorum=t.JoinQuorum(count=2)))
    never = noop("never", "list", condition="size(outputs.list.json) > 3")
    driver = Driver(
        request(noop("list"), each, never, together),
        lambda step: says('["a", "b", "c"]') if step.step_id == "T/list" else says(step.step_id),
    )
    driver.run()
    return driver


def failure_and_retry() -> Driver:
    """A step fails twice, then answers."""
    driver = Driver(request(), lambda step: fails(UNAVAILABLE) if step.attempt < 3 else says("at last"))
    driver.run()
    return driver


def compensation() -> Driver:
    """A third step fails, so two are undone, the last one first."""
    driver = Driver(
        request(
            noop("book"),
            noop("pay", "book"),
            noop("ship", "pay", on_failure=t.ON_FAILURE_COMPENSATE),
            noop("unbook", compensates="book"),
            noop("refund", compensates="pay"),
        ),
        lambda step: fails() if step.step_id == "T/ship" else says(step.step_id),
    )
    driver.run()
    return driver


def approval() -> Driver:
    """Somebody is asked and answers after a day."""
    driver = Driver(request(question("may-i"), noop("go", "may-i", condition="outputs['may-i'].text == 'yes'")))
    driver.run()
    driver.wait(86_400)
    driver.provide("may-i", "yes")
    driver.run()
    return driver


def approval_expired() -> Driver:
    """Somebody is asked and never answers."""
    driver = Driver(request(question("may-i"), noop("go", "may-i")))
    driver.run()
    driver.wait(8 * 86_400)
    driver.run()
    return driver


def cancel() -> Driver:
    """The turn is cancelled during a step, which its owner does not know yet when it decides."""
    driver = Driver(request(knowledge_namespaces=_KNOWLEDGE), lambda _: None)
    driver.run()
    driver.cancel()
    driver.settle("retrieve", says("found"))
    driver.decide()
    return driver


def takeover() -> Driver:
    """Another owner takes over while two steps are under way; the result of a first attempt still arrives."""
    driver = Driver(request(noop("a"), noop("b"), noop("c", "a", "b")), lambda _: None)
    driver.run()
    driver.take_over()
    driver.settle("a", says("a"))
    driver.settle("b", fails(UNAVAILABLE))
    driver.decide()
    driver.take_over()
    driver.settle("b", says("b"))
    driver.decide()
    driver.settle("c", says("c"))
    driver.decide()
    return driver


def timeout() -> Driver:
    """The turn reaches its time limit."""
    driver = Driver(request(), lambda _: None)
    driver.run()
    driver.wait(120)
    driver.expire()
    return driver


def too_many_steps() -> Driver:
    """A model keeps asking for tools."""
    driver = Driver(
        request(limits=t.TurnLimits(max_steps=5)),
        lambda step: asks("clock") if step.HasField("model") else says("12:00"),
    )
    driver.run()
    return driver


def question(step_id: str, *needs: str, days: int = 7) -> t.Step:
    """Returns a step that asks for approval."""
    step = t.Step(step_id=step_id, depends_on=needs, approval=t.ApprovalStep(question="Go on?", choices=["yes", "no"]))
    step.approval.wait.FromSeconds(days * 86_400)
    return step


RECORDED: tuple[Callable[[], Driver], ...] = (
    direct,
    model_loop,
    planned,
    fan_out,
    failure_and_retry,
    compensation,
    approval,
    approval_expired,
    cancel,
    takeover,
    timeout,
    too_many_steps,
)


def lines_of(driver: Driver) -> str:
    """Returns a turn's history as `agentshell turns show --json` prints it."""
    return "".join(
        json_format.MessageToJson(recorded, indent=None, ensure_ascii=False) + "\n" for recorded in driver.events
    )


if __name__ == "__main__":
    HISTORIES.mkdir(exist_ok=True)
    for record in RECORDED:
        (HISTORIES / f"{record.__name__}.jsonl").write_text(lines_of(record()))
