"""The client's only error type: what the mesh reported, decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from kfm.error.v1.error_pb2 import ErrorReason, Failure

_DETAILS = "grpc-status-details-bin"
_PREFIX = "ERROR_REASON_"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# What a bare code means when it comes from the transport rather than the mesh.
_REASONS = {
    grpc.StatusCode.UNAVAILABLE: "SERVICE_UNAVAILABLE",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "TOO_LARGE",
    grpc.StatusCode.UNIMPLEMENTED: "NOT_IMPLEMENTED",
}


class XenocommError(Exception):
    """A call, or a turn, failed.

    `code` tells software how to react. `reason` is the exact cause, to match on: the name of a
    `kfm.error.v1.ErrorReason` without its prefix, such as `TURN_NOT_FOUND`. `message` is for people. `metadata` has the
    facts behind it, `violations` the (field, description) pairs of a refused request. `retry_delay` is set if a retry
    can help.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay = retry_delay


def from_rpc(error: grpc.aio.AioRpcError) -> XenocommError:
    """Returns the error that an RPC ended with."""
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in _status(error).details:
        any(detail.Unpack(known) for known in (info, bad_request, retry))
    code = error.code()
    return XenocommError(
        code,
        info.reason or _REASONS.get(code, code.name),
        error.details() or code.name,
        metadata=info.metadata,
        violations=[(violation.field, violation.description) for violation in bad_request.field_violations],
        retry_delay=retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None,
    )


def from_failure(failure: Failure) -> XenocommError:
    """Returns the error for a failed turn or step; its `__cause__` is the underlying failure."""
    known = failure.reason in ErrorReason.values()
    error = XenocommError(
        _CODES.get(failure.code, grpc.StatusCode.UNKNOWN),
        ErrorReason.Name(failure.reason).removeprefix(_PREFIX) if known else str(failure.reason),
        failure.message,
        metadata=failure.metadata,
        retry_delay=failure.retry_delay.ToTimedelta() if failure.HasField("retry_delay") else None,
    )
    if failure.HasField("cause"):
        error.__cause__ = from_failure(failure.cause)
    return error


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    packed = dict(error.trailing_metadata() or ()).get(_DETAILS)
    return status_pb2.Status.FromString(packed) if isinstance(packed, bytes) else status_pb2.Status()
