"""What to do about a failed call to a vendor: whether and where to ask again, and after how long. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum

from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

FIRST_SECONDS = 0.5
MOST_SECONDS = 8.0
# A longer delay that a vendor asks for is not waited out: the caller is told how long it is.
MOST_RETRY_SECONDS = 60.0
# The same limit when another model can be asked instead.
MOST_RETRY_SECONDS_BESIDE_OTHERS = 2.0


class Remedy(Enum):
    """Who may answer when an endpoint has failed."""

    AGAIN = "the same endpoint after a while, or any other"
    ELSEWHERE = "another endpoint of the provider, or another model"
    ANOTHER_MODEL = "another model alone"
    NONE = "nobody: it is the caller's to know"


# Reasons not listed here, budgets and our own defects among them, have no remedy. A filter's refusal is an answer: no
# vendor is sought that would let the content pass. AIP-194 retries only UNAVAILABLE; a vendor's 429 and its timeouts
# are just as transient, since they concern one endpoint and not the whole service.
_REMEDIES: Mapping[ErrorReason.ValueType, Remedy] = {
    error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED: Remedy.AGAIN,
    error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE: Remedy.AGAIN,
    error_pb2.ERROR_REASON_PROVIDER_TIMEOUT: Remedy.AGAIN,
    error_pb2.ERROR_REASON_PROVIDER_CONNECTION: Remedy.AGAIN,
    error_pb2.ERROR_REASON_PROVIDER_CIRCUIT_OPEN: Remedy.ELSEWHERE,
    error_pb2.ERROR_REASON_OVERLOADED: Remedy.ELSEWHERE,
    error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID: Remedy.ELSEWHERE,
    error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID: Remedy.ANOTHER_MODEL,
    error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG: Remedy.ANOTHER_MODEL,
    error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID: Remedy.ANOTHER_MODEL,
    error_pb2.ERROR_REASON_MODEL_NOT_FOUND: Remedy.ANOTHER_MODEL,
    error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED: Remedy.ANOTHER_MODEL,
}

# Failures of the endpoint itself, which open its breaker.
UNHEALTHY: frozenset[ErrorReason.ValueType] = frozenset(
    (
        error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
        error_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
        error_pb2.ERROR_REASON_PROVIDER_CONNECTION,
    )
)


def remedy(reason: ErrorReason.ValueType) -> Remedy:
    """Returns who may answer after a failure for this reason."""
    return _REMEDIES.get(reason, Remedy.NONE)


def wait_seconds(
    retry_delay: timedelta | None, attempt: int, chance: float, remaining_seconds: float, *, has_others: bool
) -> float | None:
    """Returns how long to wait before another attempt; None: too long, or past the caller's deadline.

    The wait is the vendor's own `retry_delay`; without one it grows exponentially with `attempt` (0 for the first that
    failed), with full jitter from `chance` in [0, 1). `has_others`: another model can be asked at once.
    """
    if retry_delay is None:
        seconds = chance * min(MOST_SECONDS, FIRST_SECONDS * 2**attempt)
        longest = remaining_seconds
    else:
        seconds = retry_delay.total_seconds()
        longest = min(remaining_seconds, MOST_RETRY_SECONDS_BESIDE_OTHERS if has_others else MOST_RETRY_SECONDS)
    return seconds if seconds < longest else None
