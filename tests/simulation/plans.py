"""Random plans with all kinds of steps, joins and policies."""

from __future__ import annotations

from random import Random

from agentshell.turn import plan as plans
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.turn.v1 import turn_pb2 as t
from kfm.turn.v1.turn_event_pb2 import TurnRequested

_MAX_STEPS = 5
_POLICIES = (t.ON_FAILURE_FAIL_TURN, t.ON_FAILURE_CONTINUE, t.ON_FAILURE_COMPENSATE)
_WAIT_SECONDS = 60


def a_request(random: Random) -> TurnRequested:
    """Returns a turn's request, mostly with its own plan."""
    limits = t.TurnLimits(max_steps=random.choice((4, 25, 25, 25)), max_attempts=random.choice((1, 2, 3)))
    limits.max_duration.FromSeconds(120)
    if random.random() < 0.1:
        limits.max_tokens = 4
    requested = TurnRequested(
        input=Message(role=ROLE_USER, parts=[Part(text=Text(text="hello"))]), limits=limits, principal_id="ann"
    )
    match random.randrange(8):
        case 0:
            requested.knowledge_namespaces.append("knowledge/guide")
        case 1:
            requested.strategy = t.PLAN_STRATEGY_PLANNED
        case _:
            requested.plan.CopyFrom(a_plan(random))
    return requested


def a_plan(random: Random) -> t.Plan:
    """Returns a plan that passes the checks for callers' plans."""
    made = t.Plan()
    for index in range(1 + random.randrange(_MAX_STEPS)):
        _add_step(random, made, f"s{index}")
    needed = {name for step in made.steps for name in step.depends_on}
    for step in made.steps:
        if step.fan_out and step.step_id not in needed:
            step.fan_out = ""
    for step in list(made.steps):
        if not step.fan_out and not step.HasField("approval") and random.random() < 0.3:
            made.steps.add(step_id=f"undo-{step.step_id}", compensates=step.step_id, noop=t.NoopStep())
    assert plans.problems(made) == [], plans.problems(made)
    return made


def _add_step(random: Random, made: t.Plan, step_id: str) -> None:
    before = [step.step_id for step in made.steps]
    needs = [name for name in before if random.random() < 0.5]
    step = made.steps.add(step_id=step_id, depends_on=needs)
    match random.randrange(10):
        case 0 | 1 | 2:
            step.model.SetInParent()
        case 3:
            step.plan.SetInParent()
        case 4:
            step.approval.question = "go on?"
            step.approval.wait.FromSeconds(_WAIT_SECONDS)
        case 5:
            step.tool.name = "clock"
        case _:
            step.noop.SetInParent()
    if random.random() < 0.4:
        step.on_failure = random.choice(_POLICIES)
    if needs and random.random() < 0.3:
        if random.random() < 0.5:
            step.join.any.SetInParent()
        else:
            step.join.quorum.count = 1 + random.randrange(len(needs))
    if needs and random.random() < 0.15:
        source = random.choice(needs)
        step.condition = random.choice((f"outputs.{source}.text == 'yes'", "outputs.nobody.text == ''", "false"))
    if not step.HasField("approval") and random.random() < 0.15:
        step.fan_out = random.choice(("[1, 2]", "[]", "['a']", "input"))
    if random.random() < 0.1:
        step.retry.max_attempts = 2


def a_written_plan(random: Random) -> t.Plan:
    """Returns a plan as a model writes it."""
    made = t.Plan()
    for index in range(1 + random.randrange(2)):
        step = made.steps.add(
            step_id=f"w{index}", depends_on=[f"w{index - 1}"] if index and random.random() < 0.5 else []
        )
        step.tool.name = "clock"
        step.on_failure = random.choice(_POLICIES)
    if random.random() < 0.2:
        made.steps.add(step_id="undo", compensates="w0", noop=t.NoopStep())
    return made
