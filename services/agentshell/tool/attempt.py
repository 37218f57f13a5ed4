"""An attempt at a request: what makes a call of a tool happen once."""

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
    """The attempt `number` of a tenant at a request; `digest` tells its call from another."""

    tenant_id: str
    request_id: str
    digest: bytes
    number: int

    @classmethod
    def at(cls, request: InvokeToolRequest) -> Self:
        """Returns what `request` is, made by the caller who is being served."""
        named = InvokeToolRequest(personality_id=request.personality_id, call=request.call)
        digest = hashlib.sha256(named.SerializeToString(deterministic=True)).digest()
        return cls(call.tenant(), request.request_id, digest, request.attempt)

    def reused(self) -> AgentShellError:
        """The error where the request id is another call's."""
        return errors.request_id_reused(self.request_id)

    def fenced(self) -> AgentShellError:
        """The error where a later attempt has begun."""
        return AgentShellError(
            error_pb2.ERROR_REASON_FENCED,
            f"attempt {self.number} at request {self.request_id!r} is over: a later one has begun; leave it to that",
            metadata={"request_id": self.request_id, "attempt": str(self.number)},
        )
