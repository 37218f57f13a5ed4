"""How vendors fail: one table from HTTP statuses and vendors' codes to our reasons, and the error made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

import structlog

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

_log = structlog.get_logger("agentshell.provider")

MAX_MESSAGE_CHARACTERS = 500
MAX_RETRY_SECONDS = 24 * 60 * 60

_LIMITED = error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED
_UNAVAILABLE = error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE
_KEY = error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID
_REQUEST = error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID
_TOO_LONG = error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG
_FILTERED = error_pb2.ERROR_REASON_PROVIDER_CONTENT_FILTERED
_TIMEOUT = error_pb2.ERROR_REASON_PROVIDER_TIMEOUT
_CONNECTION = error_pb2.ERROR_REASON_PROVIDER_CONNECTION
_INVALID = error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID
_NO_MODEL = error_pb2.ERROR_REASON_MODEL_NOT_FOUND

# The vendors' own names of errors, which say more than a status and are all there is within a stream.
_BY_CODE: Mapping[str, ErrorReason.ValueType] = {
    "context_length_exceeded": _TOO_LONG,
    "string_above_max_length": _TOO_LONG,
    "content_filter": _FILTERED,
    "content_policy_violation": _FILTERED,
    "invalid_api_key": _KEY,
    "model_not_found": _NO_MODEL,
    "rate_limit_exceeded": _LIMITED,
    "insufficient_quota": _LIMITED,
    "server_error": _UNAVAILABLE,
    "invalid_request_error": _REQUEST,
    "authentication_error": _KEY,
    "billing_error": _KEY,
    "permission_error": _KEY,
    "not_found_error": _NO_MODEL,
    "request_too_large": _REQUEST,
    "rate_limit_error": _LIMITED,
    "api_error": _UNAVAILABLE,
    "overloaded_error": _UNAVAILABLE,
    "timeout_error": _TIMEOUT,
}
_BY_STATUS: Mapping[int, ErrorReason.ValueType] = {
    401: _KEY,
    402: _KEY,
    403: _KEY,
    404: _NO_MODEL,
    408: _TIMEOUT,
    409: _UNAVAILABLE,
    429: _LIMITED,
    504: _TIMEOUT,
}
_ADVICE: Mapping[ErrorReason.ValueType, str] = {
    _LIMITED: "limits the rate, or the account's money is spent; wait, or raise the account's limits",
    _UNAVAILABLE: "is overloaded or down; try again later",
    _KEY: "refused the key; check the variable that holds it and what the account may do",
    _REQUEST: "refused the request; its message says what to change",
    _TOO_LONG: "has too small a context for these messages; send fewer, or ask a model with a larger one",
    _FILTERED: "refused the content by its filter",
    _TIMEOUT: "did not answer in time",
    _CONNECTION: "could not be reached, or cut the connection; check its base_url and the network",
    _INVALID: "answered with what is not its protocol; check its base_url",
    _NO_MODEL: "has no such model, or nothing at this base_url; ask ListModels",
}
_TOO_LONG_WORDS = re.compile(r"prompt is too long|maximum context length|exceeds? the context|context window", re.I)
_SECRET = re.compile(r"\b(?:sk|pk|rk)-[^\s\"',;]+|(?<=Bearer )\S+", re.I)


class Kind(Enum):
    """Where a call to a vendor failed."""

    ANSWERED = "the vendor answered with an error"
    TIMEOUT = "no answer in time"
    CONNECTION = "no connection, or one cut within the answer"
    MALFORMED = "an answer that is not the protocol's"


@dataclass(frozen=True, slots=True)
class Failure:
    """What an SDK's exception says. `code` is the vendor's own name of the error, `retry_after` its header."""

    kind: Kind
    status: int = 0
    code: str = ""
    message: str = ""
    retry_after: str = ""


def reason(failure: Failure) -> ErrorReason.ValueType:
    """Returns our reason for a failure. Pure."""
    match failure.kind:
        case Kind.TIMEOUT:
            return _TIMEOUT
        case Kind.CONNECTION:
            return _CONNECTION
        case Kind.MALFORMED:
            return _INVALID
        case Kind.ANSWERED:
            found = _BY_CODE.get(failure.code) or _BY_STATUS.get(failure.status)
            if found is None:
                found = _REQUEST if 400 <= failure.status < 500 else _UNAVAILABLE if failure.status >= 500 else _INVALID
            return _TOO_LONG if found == _REQUEST and _TOO_LONG_WORDS.search(failure.message) else found


def error(failure: Failure, provider: str, model: str, key: str, cause: Exception | None) -> AgentShellError:
    """Returns a failure as an error: the vendor's words in its metadata, without `key` or anything like a key."""
    found = reason(failure)
    if failure.kind is Kind.MALFORMED:
        _log.warning("a vendor's answer was not understood", provider=provider, model=model, exc_info=cause)
    metadata = {"provider": provider, "model": model}
    if failure.status:
        metadata["status"] = str(failure.status)
    if failure.code:
        metadata["vendor_code"] = failure.code
    if failure.message:
        metadata["vendor_message"] = redact(failure.message, key)
    return AgentShellError(
        found,
        f"provider {provider} (model {model}) {_ADVICE[found]}",
        metadata=metadata,
        retry_delay=_retry_delay(failure.retry_after) if found in (_LIMITED, _UNAVAILABLE) else None,
        cause=cause,
    )


def no_key(provider: str, variable: str) -> AgentShellError:
    """The error for a vendor that has no key here."""
    return AgentShellError(
        _KEY,
        f"provider {provider} has no key: set {variable} in the environment of the provider service, "
        "or ask provider local, which needs none",
        metadata={"provider": provider, "variable": variable},
    )


def redact(text: str, key: str) -> str:
    """Returns a vendor's words, shortened, without the key and without what looks like one."""
    if key:
        text = text.replace(key, "[key]")
    return _SECRET.sub("[key]", text)[:MAX_MESSAGE_CHARACTERS]


def _retry_delay(header: str) -> timedelta | None:
    try:
        seconds = float(header)
    except ValueError:  # Absent, or a date, which no model vendor sends.
        return None
    return timedelta(seconds=seconds) if 0 <= seconds <= MAX_RETRY_SECONDS else None
