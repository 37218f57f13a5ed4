"""What the host gives a tool besides its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox.limits import Budget
from kfm.personality.v1.personality_service_pb2 import Personality

if TYPE_CHECKING:
    from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceAsyncStub  # Only the type stubs have it.


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a tool. Its principal and deadline are in `agentshell.mesh.call`."""

    request_id: str
    """Identifies the effect: the same for each attempt."""
    personality: Personality
    """Whose tool it is."""
    grant: Grant
    """What it may reach outside."""
    budget: Budget
    """How much of that is left."""
    egress: Egress
    """Access to the Web."""
    memory: MemoryServiceAsyncStub
    """Memory, on behalf of the caller."""
    progress: Callable[[str], None]
    """Tells the caller, for people, what the tool is doing. May be dropped if the caller reads slowly."""
