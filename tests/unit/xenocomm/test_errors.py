"""Everything the mesh says about a failure reaches the caller."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from agentshell.mesh import errors as mesh_errors
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from xenocomm import XenocommError, errors

_OVERLOADED = AgentShellError(
    error_pb2.ERROR_REASON_OVERLOADED,
    "too many turns",
    metadata={"limit": "7"},
    violations=[("turn", "one too many")],
    retry_delay=timedelta(seconds=1.5),
)


def rpc_error(code: grpc.StatusCode, details: str | None, *trailing: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def facts(error: XenocommError) -> tuple[Any, ...]:
    return (error.code, error.reason, error.message, error.metadata, error.violations, error.retry_delay)


def test_a_rich_status_is_decoded_whole() -> None:
    packed = mesh_errors.to_status(_OVERLOADED).SerializeToString()
    error = errors.from_rpc(
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many turns", ("grpc-status-details-bin", packed))
    )
    assert facts(error) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        "too many turns",
        {"limit": "7"},
        (("turn", "one too many"),),
        timedelta(seconds=1.5),
    )
    assert str(error) == "OVERLOADED: too many turns"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "SERVICE_UNAVAILABLE"),
        (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED"),
        (grpc.StatusCode.UNKNOWN, "UNKNOWN"),
    ],
)
def test_a_bare_status_has_a_reason_too(code: grpc.StatusCode, reason: str) -> None:
    assert facts(errors.from_rpc(rpc_error(code, None))) == (code, reason, code.name, {}, (), None)


def test_a_failure_keeps_its_cause() -> None:
    outer = AgentShellError(error_pb2.ERROR_REASON_TURN_TIMEOUT, "the turn took too long", cause=_OVERLOADED)
    error = errors.from_failure(mesh_errors.to_failure(outer))
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TURN_TIMEOUT")
    assert isinstance(error.__cause__, XenocommError)
    assert (error.__cause__.reason, error.__cause__.retry_delay) == ("OVERLOADED", timedelta(seconds=1.5))


def test_a_reason_of_a_later_release_is_its_number() -> None:
    failure = error_pb2.Failure.FromString(error_pb2.Failure(message="new").SerializeToString() + b"\x10\xe7\x07")
    assert facts(errors.from_failure(failure)) == (grpc.StatusCode.OK, "999", "new", {}, (), None)
