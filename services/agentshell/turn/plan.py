"""What is to be done in a turn: plans made here, and plans given by a caller."""

from __future__ import annotations

from collections.abc import Sequence

from kfm.turn.v1.turn_pb2 import ON_FAILURE_COMPENSATE, MemoryStep, ModelStep, Plan, Step

# What this release can run; the others are in the contract, and refused by name.
STEP_KINDS = frozenset({"model", "memory", "noop"})

RETRIEVE, ANSWER = "retrieve", "answer"


def direct(turn_id: str, knowledge_namespaces: Sequence[str]) -> Plan:
    """Returns the plan of a plain turn: retrieve what the personality knows, then answer."""
    answer = Step(step_id=ANSWER, model=ModelStep())
    steps = [answer]
    if knowledge_namespaces:
        retrieve = Step(step_id=RETRIEVE, memory=MemoryStep(namespaces=knowledge_namespaces))
        answer.depends_on.append(RETRIEVE)
        steps.insert(0, retrieve)
    return own(turn_id, Plan(plan_id="direct", steps=steps))


def own(turn_id: str, plan: Plan) -> Plan:
    """Returns the plan with the turn put before each step's name: a step's id is the key of its effects everywhere."""
    owned = Plan()
    owned.CopyFrom(plan)
    for step in owned.steps:
        step.step_id = f"{turn_id}/{step.step_id}"
        step.depends_on[:] = [f"{turn_id}/{name}" for name in step.depends_on]
    return owned


def problems(plan: Plan) -> list[tuple[str, str]]:
    """Returns what is wrong with a given plan as (field, description) pairs; the contract's own rules aside."""
    found: list[tuple[str, str]] = []
    names = [step.step_id for step in plan.steps]
    for index, step in enumerate(plan.steps):
        field = f"plan.steps[{index}]"
        if names.index(step.step_id) != index:
            found.append((f"{field}.step_id", f"{step.step_id!r} names another step already"))
        found += [
            (f"{field}.depends_on", f"{name!r} is not a step of the plan")
            for name in step.depends_on
            if name not in names
        ]
    if not found:
        found = [("plan.steps", f"{name!r} depends on itself, by way of others") for name in _in_cycles(plan)]
    return found


def unsupported(plan: Plan) -> str:
    """Returns the first thing a plan asks for that this release cannot do; empty if there is none."""
    for step in plan.steps:
        kind = step.WhichOneof("kind") or ""
        if kind not in STEP_KINDS:
            return f"a step of kind {kind!r} ({step.step_id})"
        if step.on_failure == ON_FAILURE_COMPENSATE:
            return f"compensation ({step.step_id})"
    return ""


def _in_cycles(plan: Plan) -> list[str]:
    waiting = {step.step_id: set(step.depends_on) for step in plan.steps}
    while ready := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in ready:
            del waiting[name]
    return sorted(waiting)
