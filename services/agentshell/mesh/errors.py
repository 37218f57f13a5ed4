"""The mesh's only error type: a reason, the code that goes with it, and what to do.

Any failure is an `AgentShellError` by the time it reaches a wire or the log. Code matches on `error.reason`, never on a
message. On the wire it is a `google.rpc.Status` with `ErrorInfo`, and with `BadRequest`, `QuotaFailure` and `RetryInfo`
where they apply (AIP-193); in an event it is a `kfm.error.v1.Failure`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import grpc
import grpc.aio
from google.protobuf import any_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason, Failure

DOMAIN = "agentshell"

_C = grpc.StatusCode
CODES: Mapping[ErrorReason.ValueType, grpc.StatusCode] = {
    error_pb2.ERROR_REASON_INVALID_REQUEST: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_CURSOR_INVALID: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_PLAN_INVALID: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_TOO_LARGE: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_REQUEST_ID_REUSED: _C.ALREADY_EXISTS,
    error_pb2.ERROR_REASON_TOOL_ARGUMENTS_INVALID: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_CREDENTIAL_INVALID: _C.UNAUTHENTICATED,
    error_pb2.ERROR_REASON_PERMISSION_DENIED: _C.PERMISSION_DENIED,
    error_pb2.ERROR_REASON_TURN_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_SESSION_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_RECORD_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_TOOL_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_PROVIDER_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_DEAD_LETTER_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_TURN_STATE: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_VERSION_CONFLICT: _C.ABORTED,
    error_pb2.ERROR_REASON_FENCED: _C.ABORTED,
    error_pb2.ERROR_REASON_PACK_INVALID: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_INPUT_EXPIRED: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_SUB_TURN_FAILED: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_HTTP_REFUSED: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_HTTP_UNAVAILABLE: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_HOST_NOT_ALLOWED: _C.PERMISSION_DENIED,
    error_pb2.ERROR_REASON_TOKEN_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_COST_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_DEPTH_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_CONFIG_INVALID: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_DEADLINE_EXCEEDED: _C.DEADLINE_EXCEEDED,
    error_pb2.ERROR_REASON_DEADLINE_REQUIRED: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_CANCELLED: _C.CANCELLED,
    error_pb2.ERROR_REASON_TURN_TIMEOUT: _C.DEADLINE_EXCEEDED,
    error_pb2.ERROR_REASON_STEP_TIMEOUT: _C.DEADLINE_EXCEEDED,
    error_pb2.ERROR_REASON_STEP_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_OVERLOADED: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG: _C.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_PROVIDER_CONTENT_FILTERED: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_PROVIDER_TIMEOUT: _C.DEADLINE_EXCEEDED,
    error_pb2.ERROR_REASON_PROVIDER_CONNECTION: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID: _C.INTERNAL,
    error_pb2.ERROR_REASON_PROVIDER_OUTPUT_INVALID: _C.INTERNAL,
    error_pb2.ERROR_REASON_PROVIDER_CIRCUIT_OPEN: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_BUDGET_EXHAUSTED: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_PRICE_UNKNOWN: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_LOG_UNAVAILABLE: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_OFFSET_OUT_OF_RANGE: _C.OUT_OF_RANGE,
    error_pb2.ERROR_REASON_TOPIC_MISMATCH: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_RECORD_UNDECODABLE: _C.DATA_LOSS,
    error_pb2.ERROR_REASON_TOPIC_NOT_FOUND: _C.NOT_FOUND,
    error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_DATA_DIRECTORY_IN_USE: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_NOT_IMPLEMENTED: _C.UNIMPLEMENTED,
    error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE: _C.UNAVAILABLE,
    error_pb2.ERROR_REASON_INTERNAL: _C.INTERNAL,
    error_pb2.ERROR_REASON_SANDBOX_UNAVAILABLE: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_TOOL_FAILED: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_TOOL_CRASHED: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_TOOL_OUTPUT_INVALID: _C.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_TOOL_TIMEOUT: _C.DEADLINE_EXCEEDED,
    error_pb2.ERROR_REASON_TOOL_CPU_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_TOOL_MEMORY_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_TOOL_OUTPUT_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_TOOL_HOST_CALL_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_TOOL_EGRESS_LIMIT: _C.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_TOOL_ABILITY_DENIED: _C.PERMISSION_DENIED,
    error_pb2.ERROR_REASON_TOOL_SERVER_UNAVAILABLE: _C.UNAVAILABLE,
}

# Conditions that may pass by themselves: worth another attempt after a while (AIP-194).
TRANSIENT_CODES = frozenset({_C.UNAVAILABLE, _C.ABORTED})

# What a bare code means when the transport, or a peer that is not ours, sends it without a reason.
_REASONS: Mapping[grpc.StatusCode, ErrorReason.ValueType] = {
    _C.CANCELLED: error_pb2.ERROR_REASON_CANCELLED,
    _C.DEADLINE_EXCEEDED: error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
    _C.UNAVAILABLE: error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
    _C.UNIMPLEMENTED: error_pb2.ERROR_REASON_NOT_IMPLEMENTED,
    _C.UNAUTHENTICATED: error_pb2.ERROR_REASON_CREDENTIAL_INVALID,
    _C.PERMISSION_DENIED: error_pb2.ERROR_REASON_PERMISSION_DENIED,
    _C.INVALID_ARGUMENT: error_pb2.ERROR_REASON_INVALID_REQUEST,
    _C.RESOURCE_EXHAUSTED: error_pb2.ERROR_REASON_TOO_LARGE,  # gRPC's own code for a message above its limit.
}

_CODE_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_PREFIX = "ERROR_REASON_"


class AgentShellError(Exception):
    """A failure, with a reason from `kfm.error.v1.ErrorReason`.

    `message` says what is wrong, where, and what to do. `metadata` holds the facts, never a secret. `violations` are
    (field, description) pairs of a request, `quotas` (subject, description) pairs of what is used up. `retry_delay` is
    set only if a retry can help.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        quotas: Sequence[tuple[str, str]] = (),
        retry_delay: timedelta | None = None,
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = CODES[reason]
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.quotas = tuple(quotas)
        self.retry_delay = retry_delay
        self.__cause__ = cause

    @property
    def name(self) -> str:
        """The reason as in `ErrorInfo.reason`: without the enum's prefix."""
        return ErrorReason.Name(self.reason).removeprefix(_PREFIX)


def invalid(field: str, description: str) -> AgentShellError:
    """The error for a request whose `field` breaks the contract in a way that the contract's rules cannot express."""
    return AgentShellError(
        error_pb2.ERROR_REASON_INVALID_REQUEST, f"{field}: {description}", violations=[(field, description)]
    )


def request_id_reused(request_id: str) -> AgentShellError:
    """The error for a `request_id` that belongs to another request."""
    return AgentShellError(
        error_pb2.ERROR_REASON_REQUEST_ID_REUSED,
        f"request_id {request_id!r} was used for another request: use a new one for each request",
        metadata={"request_id": request_id},
    )


def of(exception: BaseException) -> AgentShellError:
    """Returns any exception as an AgentShellError; an unknown one is INTERNAL, and its text stays in our logs."""
    match exception:
        case AgentShellError():
            return exception
        case grpc.aio.AioRpcError():
            return _from_rpc(exception)
        case NotImplementedError():  # From the generated servicer, for an RPC that the service does not implement.
            message = "this RPC is in the contract but not in this release"
            return AgentShellError(error_pb2.ERROR_REASON_NOT_IMPLEMENTED, message)
        case asyncio.CancelledError():
            return AgentShellError(error_pb2.ERROR_REASON_CANCELLED, "the call was cancelled")
        case TimeoutError():
            return AgentShellError(
                error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
                "the deadline passed before the call was answered; allow more time",
                cause=exception,
            )
        case _:
            return AgentShellError(
                error_pb2.ERROR_REASON_INTERNAL,
                f"a defect of Agent Shell ({type(exception).__name__}); its log has the trace",
                cause=exception,
            )


def to_status(error: AgentShellError) -> status_pb2.Status:
    """Returns the error as the status that ends an RPC."""
    status = status_pb2.Status(code=_number(error.code), message=error.message)
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.name, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in error.violations:
            bad_request.field_violations.add(field=field, description=description)
        details.append(bad_request)
    if error.quotas:
        quota_failure = error_details_pb2.QuotaFailure()
        for subject, description in error.quotas:
            quota_failure.violations.add(subject=subject, description=description)
        details.append(quota_failure)
    if error.retry_delay is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromTimedelta(error.retry_delay)
        details.append(retry_info)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_status(status: status_pb2.Status) -> AgentShellError:
    """Returns the status that ended an RPC as an error; the inverse of `to_status`."""
    info, bad_request, quota_failure, retry_info = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.QuotaFailure(),
        error_details_pb2.RetryInfo(),
    )
    retry_delay = None
    for detail in status.details:
        if detail.Unpack(info) or detail.Unpack(bad_request) or detail.Unpack(quota_failure):
            continue
        if detail.Unpack(retry_info):
            retry_delay = retry_info.retry_delay.ToTimedelta()
    if info.domain == DOMAIN and _PREFIX + info.reason in ErrorReason.keys():  # noqa: SIM118 - an enum, not a dict
        reason = ErrorReason.Value(_PREFIX + info.reason)
    else:
        reason = _REASONS.get(_CODE_BY_NUMBER.get(status.code, _C.UNKNOWN), error_pb2.ERROR_REASON_INTERNAL)
    return AgentShellError(
        reason,
        status.message,
        metadata=info.metadata,
        violations=[(v.field, v.description) for v in bad_request.field_violations],
        quotas=[(v.subject, v.description) for v in quota_failure.violations],
        retry_delay=retry_delay,
    )


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _from_rpc(call: grpc.aio.AioRpcError) -> AgentShellError:
    metadata = dict(call.trailing_metadata() or ())
    packed = metadata.get("grpc-status-details-bin")
    status = (
        status_pb2.Status.FromString(packed)
        if isinstance(packed, bytes)
        else status_pb2.Status(code=_number(call.code()), message=call.details() or call.code().name)
    )
    error = from_status(status)
    error.__cause__ = call
    return error


def to_failure(error: AgentShellError) -> Failure:
    """Returns the error as events and streamed answers carry it, with those of its causes that are AgentShellErrors."""
    failure = Failure(
        code=code_pb2.Code.ValueType(_number(error.code)),
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
    )
    if error.retry_delay is not None:
        failure.retry_delay.FromTimedelta(error.retry_delay)
    if isinstance(error.__cause__, AgentShellError):
        failure.cause.CopyFrom(to_failure(error.__cause__))
    return failure


def from_failure(failure: Failure) -> AgentShellError:
    """Returns a carried failure as an error; the inverse of `to_failure`."""
    return AgentShellError(
        failure.reason or error_pb2.ERROR_REASON_INTERNAL,
        failure.message,
        metadata=failure.metadata,
        retry_delay=failure.retry_delay.ToTimedelta() if failure.HasField("retry_delay") else None,
        cause=from_failure(failure.cause) if failure.HasField("cause") else None,
    )
