"""The call being served: its principal and deadline. A context variable carries it into every call that it makes."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

# Owns what every tenant may read and none may write: the knowledge of personality packs, in `knowledge/*`.
# No API key can be made for it; only a mesh token can carry it.
SHARED_TENANT = "@shared"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and for which tenant. Comes only from a credential, never from a request."""

    tenant_id: str
    principal_id: str


# Whoever runs the mesh, and so has its secret. As with `SHARED_TENANT`, no API key can be made for it.
OPERATOR = Principal("@operator", "operator")


@dataclass(frozen=True, slots=True)
class Call:
    """A call: its principal, and its deadline on the clock of `time.monotonic` (None: it has none).

    `is_inside`: another service makes it, on the principal's behalf.
    """

    principal: Principal
    deadline: float | None
    is_inside: bool = False

    def remaining(self) -> float | None:
        """Returns the seconds left, never below 0; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: ContextVar[Call | None] = ContextVar("agentshell_call", default=None)


def current() -> Call:
    """Returns the call being served. Raises CREDENTIAL_INVALID outside one."""
    call = _current.get()
    if call is None:
        raise AgentShellError(
            error_pb2.ERROR_REASON_CREDENTIAL_INVALID,
            "no call is being served here: the mesh's own work runs within call.scope()",
        )
    return call


def is_served() -> bool:
    """Returns whether a call is being served here; false in a process's own housekeeping."""
    return _current.get() is not None


def tenant() -> str:
    """Returns the tenant of the call being served: what every query and key must carry."""
    return current().principal.tenant_id


def is_operator() -> bool:
    """Returns whether the caller is an operator."""
    return current().principal == OPERATOR


def require_operator() -> None:
    """Raises PERMISSION_DENIED unless the caller is an operator."""
    if not is_operator():
        raise AgentShellError(
            error_pb2.ERROR_REASON_PERMISSION_DENIED,
            "this is for the operators of the mesh, and a tenant's credential does not give access: use the command "
            "`agentshell` with the mesh's data directory, whose mesh.key it signs with",
        )


def enter(principal: Principal, timeout: float | None, *, is_inside: bool = False) -> Call:
    """Makes this task serve a call of `principal` that may take `timeout` seconds."""
    call = Call(principal, None if timeout is None else time.monotonic() + timeout, is_inside)
    _current.set(call)
    return call


@contextmanager
def scope(principal: Principal, timeout: float | None) -> Generator[Call]:
    """Serves a call of `principal` within the block: the runtime acts so on behalf of whoever requested a turn."""
    before = _current.get()
    try:
        yield enter(principal, timeout)
    finally:
        _current.set(before)
