"""What a turn must be to be admitted, and what it is given. Pure."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from agentshell.mesh.config import RuntimeConfig
from agentshell.turn import plan
from kfm.content.v1.content_pb2 import ROLE_USER
from kfm.turn.v1.turn_pb2 import TurnLimits
from kfm.turn.v1.turn_service_pb2 import TurnSpec

# Of a record's 1 MiB; the rest is room for what the turn's later events add to it.
MAX_REQUEST_BYTES = 512 * 1024


def problems(spec: TurnSpec) -> list[tuple[str, str]]:
    """Returns what is wrong with a turn beyond the contract's own rules, as (field, description) pairs."""
    found = [(f"turn.{field}", description) for field, description in plan.problems(spec.plan)]
    if spec.input.role != ROLE_USER:
        found.append(("turn.input.role", "must be ROLE_USER: a turn begins with what a user says"))
    if not any(part.HasField("text") and part.text.text.strip() for part in spec.input.parts):
        found.append(("turn.input.parts", "say something: one part must be a text that is not empty"))
    return found


def digest(spec: TurnSpec) -> bytes:
    """Returns what tells two requests of one `request_id` apart."""
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).digest()


def limits(asked: TurnLimits, pack: TurnLimits, config: RuntimeConfig) -> TurnLimits:
    """Returns the narrowest of what the caller asks for, the pack allows, and the configuration allows."""
    duration = timedelta(seconds=config.max_turn_seconds)
    given = TurnLimits(max_steps=config.max_steps, max_attempts=config.max_attempts)
    for narrower in (pack, asked):
        if narrower.HasField("max_duration"):
            duration = min(duration, narrower.max_duration.ToTimedelta())
        if narrower.HasField("max_steps"):
            given.max_steps = min(given.max_steps, narrower.max_steps)
        if narrower.HasField("max_attempts"):
            given.max_attempts = min(given.max_attempts, narrower.max_attempts)
    given.max_duration.FromTimedelta(duration)
    return given
