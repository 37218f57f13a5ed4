"""An attempt at a request: the identity by which a tool call happens once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from agentshell.mesh import call, errors
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.tool.v1.tool_service_pb2 import InvokeToolRequest


@dataclass(frozen=True, slots=True)
class Attempt:
    """A tenant's attempt `number` at a request; `digest` distinguishes its call from others."""

    tenant_id: str
    request_id: str
    digest: bytes
    number: int

    @classmethod
    def at(cls, request: InvokeToolRequest) -> Self:
        """Returns the attempt that `request` is, on behalf of the caller being served."""
        named = InvokeToolRequest(personality_id=request.personality_id, call=request.call)
        digest = hashlib.sha256(named.SerializeToString(deterministic=True)).digest()
        return cls(call.tenant(), request.request_id, digest, request.attempt)

    def reused(self) -> AgentShellError:
        """The error for a request id that belongs to another call."""
        return errors.request_id_reused(self.request_id)

    def fenced(self) -> AgentShellError:
        """The error for an attempt when a later one has begun."""
        return AgentShellError(
            error_pb2.ERROR_REASON_FENCED,
            f"attempt {self.number} at request {self.request_id!r} is over: a later attempt has begun; "
            "leave the request to that one",
            metadata={"request_id": self.request_id, "attempt": str(self.number)},
        )
