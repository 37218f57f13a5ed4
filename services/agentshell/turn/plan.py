"""What is to be done in a turn: plans made here, and plans given by a caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentshell.turn import expression
from kfm.turn.v1.turn_pb2 import MemoryStep, ModelStep, Plan, PlanStep, Step

RETRIEVE, WRITE, ANSWER = "retrieve", "plan", "answer"
PACK_PLAN = "pack"
"""The id of plans that packs give."""

# What the shell says of a step, and who gives a plan does not.
SAID_BY_SHELL: frozenset[str] = frozenset(
    ("state", "attempt", "schedule_time", "end_time", "result", "failure", "failure_count", "grown_from", "item")
)


def direct(turn_id: str, knowledge_namespaces: Sequence[str]) -> Plan:
    """Returns the plan of a plain turn: retrieve what the personality knows, then answer."""
    answer = Step(step_id=ANSWER, model=ModelStep())
    return own(turn_id, Plan(plan_id="direct", steps=[*_retrieval(answer, knowledge_namespaces), answer]))


def planned(turn_id: str, knowledge_namespaces: Sequence[str]) -> Plan:
    """Returns the plan of a turn whose plan a model writes: retrieve, have it written, run it, then answer."""
    write = Step(step_id=WRITE, plan=PlanStep())
    answer = Step(step_id=ANSWER, model=ModelStep(), depends_on=[WRITE])
    return own(turn_id, Plan(plan_id="planned", steps=[*_retrieval(write, knowledge_namespaces), write, answer]))


def own(turn_id: str, plan: Plan) -> Plan:
    """Returns the plan with the turn put before each step's name: a step's id is the key of its effects everywhere."""
    return _renamed(plan, f"{turn_id}/")


def within(step_id: str, plan: Plan) -> Plan:
    """Returns the plan that a step has written, with that step put before each name."""
    return _renamed(plan, f"{step_id}#")


def problems(plan: Plan) -> list[tuple[str, str]]:
    """Returns what is wrong with a given plan as (field, description) pairs; the contract's own rules aside."""
    found: list[tuple[str, str]] = []
    names = [step.step_id for step in plan.steps]
    needed = {name for step in plan.steps for name in step.depends_on}
    growing = {step.step_id for step in plan.steps if step.fan_out or step.HasField("plan")}
    for index, step in enumerate(plan.steps):
        of_step = _step_problems(step, index, names, needed, growing)
        found += [(f"plan.steps[{index}].{field}", text) for field, text in of_step]
    found += [(f"plan.steps[{names.index(name)}].compensates", text) for name, text in _compensation_problems(plan)]
    if not found:
        found = [("plan.steps", f"{name!r} depends on itself, by way of others") for name in _in_cycles(plan)]
    return found


def said_by_shell(step: Step) -> list[str]:
    """Returns the fields of a given step that only the shell may set, and that are set."""
    said: list[str] = sorted(SAID_BY_SHELL & {field.name for field, _ in step.ListFields()})
    if step.model.continues:
        said.append("model.continues")
    if step.tool.asked_by:
        said.append("tool.asked_by")
    return said


def _retrieval(first: Step, knowledge_namespaces: Sequence[str]) -> list[Step]:
    if not knowledge_namespaces:
        return []
    first.depends_on.append(RETRIEVE)
    return [Step(step_id=RETRIEVE, memory=MemoryStep(namespaces=knowledge_namespaces))]


def _renamed(plan: Plan, prefix: str) -> Plan:
    renamed = Plan()
    renamed.CopyFrom(plan)
    for step in renamed.steps:
        step.step_id = prefix + step.step_id
        step.depends_on[:] = [prefix + name for name in step.depends_on]
        if step.compensates:
            step.compensates = prefix + step.compensates
        if step.grown_from:
            step.grown_from = prefix + step.grown_from
        if step.model.continues:
            step.model.continues = prefix + step.model.continues
        if step.tool.asked_by:
            step.tool.asked_by = prefix + step.tool.asked_by
    return renamed


def _step_problems(
    step: Step, index: int, names: list[str], needed: set[str], growing: set[str]
) -> Iterator[tuple[str, str]]:
    if names.index(step.step_id) != index:
        yield "step_id", f"{step.step_id!r} names another step already"
    for name in step.depends_on:
        if name not in names:
            yield "depends_on", f"{name!r} is not a step of the plan"
    for field in ("condition", "fan_out", "input"):
        source = getattr(step, field)
        if source and (problem := expression.problem(source)):
            yield field, problem
    if step.fan_out and step.step_id not in needed:
        yield "fan_out", f"no step depends on {step.step_id!r}; add one that makes one output of the many"
    if step.join.quorum.count > len(step.depends_on) and not growing.intersection(step.depends_on):
        yield "join.quorum.count", f"more than the {len(step.depends_on)} steps that {step.step_id!r} depends on"


def _compensation_problems(plan: Plan) -> Iterator[tuple[str, str]]:
    steps = {step.step_id: step for step in plan.steps}
    undone: set[str] = set()
    for step in plan.steps:
        if not step.compensates:
            if any(name in steps and steps[name].compensates for name in step.depends_on):
                yield step.step_id, f"{step.step_id!r} depends on a compensation, which runs when the turn is lost"
            continue
        if step.compensates not in steps or steps[step.compensates].compensates or step.compensates in undone:
            yield step.step_id, f"{step.compensates!r} is not a step of the plan that only {step.step_id!r} undoes"
        elif steps[step.compensates].fan_out:
            yield step.step_id, f"{step.compensates!r} fans out; undo what it does within one step"
        if step.depends_on or step.condition or step.fan_out or step.HasField("approval"):
            yield (
                step.step_id,
                "a compensation has no depends_on, condition, fan_out or approval: it runs in reverse order",
            )
        undone.add(step.compensates)


def _in_cycles(plan: Plan) -> list[str]:
    waiting = {step.step_id: set(step.depends_on) for step in plan.steps}
    count = -1
    while len(waiting) != count:  # Once, where each comes after those that it depends on.
        count = len(waiting)
        for name, needs in list(waiting.items()):
            if not needs & waiting.keys():
                del waiting[name]
    return sorted(waiting)
