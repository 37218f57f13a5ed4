"""Checks what a turn needs to be admitted, and completes it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta

from agentshell.gateway import inputs
from agentshell.gateway.limits import CURRENCY
from agentshell.mesh.config import RuntimeConfig
from agentshell.turn import plan
from kfm.content.v1.content_pb2 import ROLE_USER
from kfm.personality.v1.personality_service_pb2 import Personality
from kfm.turn.v1.turn_pb2 import PLAN_STRATEGY_DIRECT, Plan, PlanStrategy, Step
from kfm.turn.v1.turn_service_pb2 import ForkTurnRequest, TurnSpec

# Out of a record's 1 MiB; the rest leaves room for what the turn's later events add.
MAX_REQUEST_BYTES = 512 * 1024


def problems(spec: TurnSpec) -> list[tuple[str, str]]:
    """Returns violations that the contract's own rules do not cover, as (field, description) pairs."""
    found = list(plan.problems(spec.plan))
    for index, step in enumerate(spec.plan.steps):
        found += [(f"plan.steps[{index}].{field}", description) for field, description in _step_problems(step)]
    if spec.input.role != ROLE_USER:
        found.append(("input.role", "must be ROLE_USER: a turn begins with a user's message"))
    if not any(part.HasField("text") and part.text.text.strip() for part in spec.input.parts):
        found.append(("input.parts", "has no text: give at least one part with a text that is not empty"))
    cost = spec.limits.max_cost
    if spec.limits.HasField("max_cost") and cost.currency_code != CURRENCY:
        found.append(("limits.max_cost.currency_code", f"must be {CURRENCY}, not {cost.currency_code!r:.20}"))
    if spec.limits.HasField("max_cost") and cost.amount_micros <= 0:
        found.append(("limits.max_cost.amount_micros", "must be more than 0; leave max_cost out for no limit"))
    return found


def digest(request: TurnSpec | ForkTurnRequest) -> bytes:
    """Returns a digest to tell a repeated request from a reused id; ignores what a sub-turn's parent has left."""
    if isinstance(request, TurnSpec) and request.HasField("parent"):
        asked, request = request, TurnSpec()
        request.CopyFrom(asked)
        for left in ("max_duration", "max_tokens", "max_cost"):
            request.limits.ClearField(left)
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def planning(asked: TurnSpec, pack: Personality) -> tuple[Plan, PlanStrategy.ValueType]:
    """Returns the plan and the strategy: the caller's, or else the pack's."""
    if asked.plan.steps or asked.strategy:
        return asked.plan, asked.strategy or PLAN_STRATEGY_DIRECT
    return pack.plan, pack.strategy or PLAN_STRATEGY_DIRECT


def bound_waits(given: Plan, config: RuntimeConfig) -> None:
    """Sets how long each approval of a plan waits: as long as it asks for, up to the configured maximum."""
    most = timedelta(seconds=config.approval_wait_seconds)
    for step in given.steps:
        if step.HasField("approval"):
            asked = step.approval.wait.ToTimedelta() if step.approval.HasField("wait") else most
            step.approval.wait.FromTimedelta(min(asked, most))


def _step_problems(step: Step) -> Iterator[tuple[str, str]]:
    yield from ((field, "is set by the shell; leave it out") for field in plan.said_by_shell(step))
    if step.approval.HasField("schema") and (problem := inputs.schema_problem(step.approval.schema)):
        yield "approval.schema", problem
