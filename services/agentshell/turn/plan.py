"""Plans of turns: those made here, and checks of those that callers give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from agentshell.turn import expression
from kfm.turn.v1.turn_pb2 import MemoryStep, ModelStep, Plan, PlanStep, Step

RETRIEVE, WRITE, ANSWER = "retrieve", "plan", "answer"
PACK_PLAN = "pack"
"""The id of plans that packs provide."""

# Fields of a step that the shell sets, and the author of a plan must not.
SAID_BY_SHELL: frozenset[str] = frozenset(
    ("state", "attempt", "schedule_time", "end_time", "result", "failure", "failure_count", "grown_from", "item")
)


def direct(turn_id: str, knowledge_namespaces: Sequence[str]) -> Plan:
    """Returns the plan of a direct turn: retrieve what the personality knows, then answer."""
    answer = Step(step_id=ANSWER, model=ModelStep())
    return own(turn_id, Plan(plan_id="direct", steps=[*_retrieval(answer, knowledge_namespaces), answer]))


def planned(turn_id: str, knowledge_namespaces: Sequence[str]) -> Plan:
    """Returns the plan of a turn whose plan a model writes: retrieve, write the plan, run it, then answer."""
    write = Step(step_id=WRITE, plan=PlanStep())
    answer = Step(step_id=ANSWER, model=ModelStep(), depends_on=[WRITE])
    return own(turn_id, Plan(plan_id="planned", steps=[*_retrieval(write, knowledge_namespaces), write, answer]))


def own(turn_id: str, plan: Plan) -> Plan:
    """Returns the plan with the turn's id before each step's name: step ids are the keys of effects everywhere."""
    return _prefixed(plan, f"{turn_id}/")


def within(step_id: str, plan: Plan) -> Plan:
    """Returns the plan that a step has written, with that step's id before each name."""
    return _prefixed(plan, f"{step_id}#")


def problems(plan: Plan) -> list[tuple[str, str]]:
    """Returns violations in a given plan that the contract's own rules do not cover, as (field, description) pairs."""
    found: list[tuple[str, str]] = []
    names = [step.step_id for step in plan.steps]
    needed = {name for step in plan.steps for name in step.depends_on}
    growing = {step.step_id for step in plan.steps if step.fan_out or step.HasField("plan")}
    for index, step in enumerate(plan.steps):
        of_step = _step_problems(step, index, names, needed, growing)
        found += [(f"plan.steps[{index}].{field}", text) for field, text in of_step]
    found += [(f"plan.steps[{names.index(name)}].compensates", text) for name, text in _compensation_problems(plan)]
    if not found:
        found = [("plan.steps", f"{name!r} depends on itself, through other steps") for name in _in_cycles(plan)]
    return found


def said_by_shell(step: Step) -> list[str]:
    """Returns the fields that are set in a given step but that only the shell may set."""
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


def rename(steps: Iterable[Step], renamed: Callable[[str], str]) -> None:
    """Gives steps other names, wherever they are named."""
    for step in steps:
        step.step_id = renamed(step.step_id)
        step.depends_on[:] = map(renamed, step.depends_on)
        if step.compensates:
            step.compensates = renamed(step.compensates)
        if step.grown_from:
            step.grown_from = renamed(step.grown_from)
        if step.model.continues:
            step.model.continues = renamed(step.model.continues)
        if step.tool.asked_by:
            step.tool.asked_by = renamed(step.tool.asked_by)


def _prefixed(plan: Plan, prefix: str) -> Plan:
    prefixed = Plan()
    prefixed.CopyFrom(plan)
    rename(prefixed.steps, lambda name: prefix + name)
    return prefixed


def _step_problems(
    step: Step, index: int, names: list[str], needed: set[str], growing: set[str]
) -> Iterator[tuple[str, str]]:
    if names.index(step.step_id) != index:
        yield "step_id", f"{step.step_id!r} is already the id of another step"
    for name in step.depends_on:
        if name not in names:
            yield "depends_on", f"{name!r} is not a step of the plan"
    for field in ("condition", "fan_out", "input"):
        source = getattr(step, field)
        if source and (problem := expression.problem(source)):
            yield field, problem
    if step.fan_out and step.step_id not in needed:
        yield "fan_out", f"no step depends on {step.step_id!r}; add one that combines its outputs into one"
    if step.join.quorum.count > len(step.depends_on) and not growing.intersection(step.depends_on):
        yield "join.quorum.count", f"more than the {len(step.depends_on)} steps that {step.step_id!r} depends on"


def _compensation_problems(plan: Plan) -> Iterator[tuple[str, str]]:
    steps = {step.step_id: step for step in plan.steps}
    undone: set[str] = set()
    for step in plan.steps:
        if not step.compensates:
            if any(name in steps and steps[name].compensates for name in step.depends_on):
                yield step.step_id, f"{step.step_id!r} depends on a compensation, which only runs when the turn fails"
            continue
        if step.compensates not in steps or steps[step.compensates].compensates or step.compensates in undone:
            yield step.step_id, f"{step.compensates!r} must be a step of the plan that nothing else compensates"
        elif steps[step.compensates].fan_out:
            yield step.step_id, f"{step.compensates!r} fans out; undo what it does within one step"
        if step.depends_on or step.condition or step.fan_out or step.HasField("approval"):
            yield (
                step.step_id,
                "a compensation must not have depends_on, condition, fan_out or approval: it runs in reverse order",
            )
        undone.add(step.compensates)


def _in_cycles(plan: Plan) -> list[str]:
    waiting = {step.step_id: set(step.depends_on) for step in plan.steps}
    count = -1
    while len(waiting) != count:  # One pass if each step follows its dependencies.
        count = len(waiting)
        for name, needs in list(waiting.items()):
            if not needs & waiting.keys():
                del waiting[name]
    return sorted(waiting)
