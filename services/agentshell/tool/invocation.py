"""What a tool is given by the host, beside its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox.limits import Budget
from kfm.personality.v1.personality_service_pb2 import Personality

if TYPE_CHECKING:
    from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceAsyncStub  # Its name is the stubs' alone.


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a tool. Whose it is and until when, `agentshell.mesh.call` says."""

    request_id: str
    """Names the effect: the same for each attempt."""
    personality: Personality
    """Whose tool it is."""
    grant: Grant
    """What it may reach outside."""
    budget: Budget
    """How much of that."""
    egress: Egress
    """The way to the Web."""
    memory: MemoryServiceAsyncStub
    """Memory, on behalf of the caller."""
    progress: Callable[[str], None]
    """Tells the caller, for people, what the tool is at. May be dropped where the caller reads slowly."""
