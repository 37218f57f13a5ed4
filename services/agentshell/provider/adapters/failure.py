"""How vendors fail: maps HTTP statuses and vendors' codes to our reasons, and makes the error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, cast

import structlog

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.key import Key
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

_log = structlog.get_logger("agentshell.provider")

_Json = Mapping[str, Any]

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

# The vendors' own names for errors, which say more than a status and are all there is within a stream.
_BY_CODE: Mapping[str, ErrorReason.ValueType] = {
    # OpenAI, and vendors that speak its protocol.
    "context_length_exceeded": _TOO_LONG,
    "string_above_max_length": _TOO_LONG,
    "content_filter": _FILTERED,
    "content_policy_violation": _FILTERED,
    "image_content_policy_violation": _FILTERED,
    "bio_policy": _FILTERED,
    "misalignment_policy_violation": _FILTERED,
    "invalid_api_key": _KEY,
    "account_deactivated": _KEY,
    "insufficient_quota": _KEY,  # The account's money is spent, as with a 402: retrying is useless.
    "billing_not_active": _KEY,
    "billing_hard_limit_reached": _KEY,
    "unsupported_country_region_territory": _KEY,
    "model_not_found": _NO_MODEL,
    "rate_limit_exceeded": _LIMITED,
    "server_error": _UNAVAILABLE,
    "server_is_overloaded": _UNAVAILABLE,
    "slow_down": _UNAVAILABLE,
    "vector_store_timeout": _TIMEOUT,
    "invalid_prompt": _REQUEST,
    # Anthropic.
    "invalid_request_error": _REQUEST,
    "authentication_error": _KEY,
    "billing_error": _KEY,
    "enforced_spend_limit_reached": _KEY,
    "contract_spend_limit_reached": _KEY,
    "linked_organization_spend_limit_reached": _KEY,
    "organization_on_hold": _KEY,
    "permission_error": _KEY,
    "not_found_error": _NO_MODEL,
    "conflict_error": _UNAVAILABLE,
    "request_too_large": _REQUEST,
    "rate_limit_error": _LIMITED,
    "api_error": _UNAVAILABLE,
    "overloaded_error": _UNAVAILABLE,
    "timeout_error": _TIMEOUT,
    # Google: the reasons of its ErrorInfo, then its statuses.
    "API_KEY_INVALID": _KEY,
    "API_KEY_SERVICE_BLOCKED": _KEY,
    "SERVICE_DISABLED": _KEY,
    "BILLING_DISABLED": _KEY,
    "CONSUMER_SUSPENDED": _KEY,
    "INVALID_ARGUMENT": _REQUEST,
    "OUT_OF_RANGE": _REQUEST,
    "UNIMPLEMENTED": _REQUEST,
    "FAILED_PRECONDITION": _KEY,  # The account is not eligible, by country or billing.
    "UNAUTHENTICATED": _KEY,
    "PERMISSION_DENIED": _KEY,
    "NOT_FOUND": _NO_MODEL,
    "RESOURCE_EXHAUSTED": _LIMITED,
    "ABORTED": _UNAVAILABLE,
    "CANCELLED": _UNAVAILABLE,
    "INTERNAL": _UNAVAILABLE,
    "UNKNOWN": _UNAVAILABLE,
    "UNAVAILABLE": _UNAVAILABLE,
    "DEADLINE_EXCEEDED": _TIMEOUT,
}
# Other statuses from 400 are _REQUEST, from 500 _UNAVAILABLE.
_BY_STATUS: Mapping[int, ErrorReason.ValueType] = {
    401: _KEY,
    402: _KEY,
    403: _KEY,
    404: _NO_MODEL,
    408: _TIMEOUT,
    409: _UNAVAILABLE,
    425: _UNAVAILABLE,
    429: _LIMITED,
    504: _TIMEOUT,
    524: _TIMEOUT,
}
_ADVICE: Mapping[ErrorReason.ValueType, str] = {
    _LIMITED: "limits the rate; wait, or raise the account's limits",
    _UNAVAILABLE: "is overloaded or down; try again later",
    _KEY: "refused the key; check the key, what its account may do, and whether it has credit left",
    _REQUEST: "refused the request; its message says what to change",
    _TOO_LONG: "has too small a context for these messages; send fewer, or use a model with a larger one",
    _FILTERED: "refused the content with its filter; rephrase it, or use another model",
    _TIMEOUT: "did not answer in time; try again, or ask for less",
    _CONNECTION: "could not be reached, or broke the connection; check its base_url and the network",
    _INVALID: "sent an answer that cannot be understood; ask again or use another model, raise max_output_tokens, and "
    "check its base_url",
    _NO_MODEL: "has no such model, or nothing at this base_url; see ListModels",
}
_TOO_LONG_WORDS = re.compile(
    r"prompt is too long|maximum context length|exceeds? the context|context window|context size"
    r"|input token count .{0,40}exceeds",
    re.IGNORECASE,
)
# What follows `Bearer`, a key in a URL, and the known forms of vendors' keys.
_SECRET = re.compile(
    r"(?P<lead>\bbearer\s+|[?&](?:key|api[_-]?key|token|access_token)=)[^\s\"'&,;]+"
    r"|\b(?:(?:sk|pk|rk)-|gsk_|xai-|hf_|AIza|ya29\.)[^\s\"'&,;]+",
    re.IGNORECASE,
)


class Kind(Enum):
    """Where a call to a vendor failed."""

    ANSWERED = "the vendor answered with an error"
    TIMEOUT = "no answer in time"
    CONNECTION = "no connection, or one that broke during the answer"
    MALFORMED = "an answer that does not follow the protocol"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call failed. `code` is the vendor's own name for it, `retry_delay` how long the vendor says to wait."""

    kind: Kind
    status: int = 0
    code: str = ""
    message: str = ""
    retry_delay: timedelta | None = None


class Refused(Exception):  # noqa: N818 - it is the vendor that refuses
    """A vendor's response with an error status, and its text."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure
        self.text = text


def answered(status: int, headers: Mapping[str, str], body: Any) -> Failure:
    """Reads a vendor's error in the form of OpenAI, Anthropic or Google. Pure, unless `headers` lack a date.

    `status` is 0 within a stream; the names in `headers` are lower-case; `body` is JSON, or else text.
    """
    error = _error(body)
    reasons = [detail.get("reason") for detail in _details(error)]
    codes = [str(code) for code in (*reasons, error.get("code"), error.get("status"), error.get("type")) if code]
    code = next((code for code in codes if code in _BY_CODE), next((c for c in codes if not c.isdigit()), ""))
    message = str(error.get("message") or body or "")
    return Failure(Kind.ANSWERED, status, code, message, _retry_delay(headers, error))


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


def error(failure: Failure, provider: str, model: str, key: Key, cause: Exception | None) -> AgentShellError:
    """Returns a failure as an error, with the vendor's words in its metadata, without the key or anything like one."""
    found = reason(failure)
    secret = key.find()
    if failure.kind is Kind.MALFORMED:
        problem = redact(f"{type(cause).__name__}: {cause}", secret)
        _log.warning("a vendor's answer was not understood", provider=provider, model=model, problem=problem)
    metadata = {"provider": provider, "model": model}
    if failure.status:
        metadata["status"] = str(failure.status)
    if failure.code:
        metadata["vendor_code"] = redact(failure.code, secret)
    if failure.message:
        metadata["vendor_message"] = redact(failure.message, secret)
    return AgentShellError(
        found,
        f"provider {provider} (model {model}) {_ADVICE[found]}",
        metadata=metadata,
        retry_delay=failure.retry_delay if found in (_LIMITED, _UNAVAILABLE) else None,
        cause=cause,
    )


def redact(text: str, key: str) -> str:
    """Returns a vendor's words, shortened, without the key or anything that looks like one."""
    if key:
        text = text.replace(key, "[key]")
    return _SECRET.sub(lambda found: f"{found['lead'] or ''}[key]", text)[:MAX_MESSAGE_CHARACTERS]


def _error(body: Any) -> _Json:
    if isinstance(body, list):
        body = next(iter(cast("list[Any]", body)), None)
    if not isinstance(body, dict):
        return {}
    found = cast(_Json, body)
    return found["error"] if isinstance(found.get("error"), dict) else found


def _details(error: _Json) -> list[_Json]:
    """Returns an error's details: Google has a list of them (AIP-193), Anthropic one, with its `error_code`."""
    details: Any = error.get("details")
    if isinstance(details, dict):
        return [{"reason": cast(_Json, details).get("error_code")}]
    listed = cast("list[Any]", details) if isinstance(details, list) else []
    return [detail for detail in listed if isinstance(detail, dict)]


def _retry_delay(headers: Mapping[str, str], error: _Json) -> timedelta | None:
    """Returns how long a vendor says to wait, in its headers or in Google's RetryInfo; None: nothing sensible."""
    after, date = headers.get("retry-after", ""), headers.get("date", "")
    info = next((str(detail["retryDelay"]) for detail in _details(error) if "retryDelay" in detail), "")
    said = (
        _number(headers.get("retry-after-ms", ""), 0.001),
        _number(after),
        _until(after, date),
        _number(info.removesuffix("s")),
    )
    seconds = next((seconds for seconds in said if seconds is not None), math.nan)
    return timedelta(seconds=seconds) if 0 <= seconds <= MAX_RETRY_SECONDS else None


def _number(text: str, unit: float = 1.0) -> float | None:
    try:
        return float(text) * unit
    except ValueError:
        return None


def _until(date: str, now: str) -> float | None:
    """Returns the seconds until a date, by the vendor's own clock or else ours."""
    try:
        at = parsedate_to_datetime(date)
        return max(0.0, (at - (parsedate_to_datetime(now) if now else datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):  # Not a date, or one without a zone, which does not compare with one that has it.
        return None
