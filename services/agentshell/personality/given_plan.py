"""The plan that a pack gives in its manifest: steps in the form of the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import json_format

from agentshell.mesh import validation
from agentshell.mesh.errors import AgentShellError
from agentshell.personality.manifest import FILE
from agentshell.personality.yaml_file import Lines, PackError
from agentshell.turn import plan
from kfm.turn.v1.turn_pb2 import Plan, Step

_PART = re.compile(r"[a-z_]+|\d+")


def parse(steps: Sequence[dict[str, Any]], lines: Lines) -> Plan:
    """Returns the plan with these steps. Raises PackError, with the line."""
    given = Plan(plan_id=plan.PACK_PLAN)
    for index, step in enumerate(steps):
        try:
            json_format.ParseDict(step, given.steps.add())
        except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
            place = ("plan", "steps", index)
            raise PackError(FILE, lines.find(*place), f"plan.steps.{index}: {error}; fix it") from None
    for field, problem in _problems(given):
        raise PackError(FILE, lines.find("plan", *_path(field)), f"plan.{field}: {problem}")
    return given


def _problems(given: Plan) -> Sequence[tuple[str, str]]:
    try:
        validation.check(given)
    except AgentShellError as error:
        return error.violations
    found = [
        (f"plan.steps[{index}].{field}", problem)
        for index, step in enumerate(given.steps)
        for field, problem in _step_problems(step)
    ]
    return [(field.removeprefix("plan."), problem) for field, problem in (found or plan.problems(given))]


def _step_problems(step: Step) -> Iterator[tuple[str, str]]:
    yield from ((field, "is set by the shell; leave it out") for field in plan.said_by_shell(step))
    if step.approval.HasField("schema"):
        yield "approval.schema", "is only accepted from callers; give choices"


def _path(field: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in _PART.findall(field)]
