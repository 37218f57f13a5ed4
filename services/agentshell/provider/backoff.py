"""What to do about a failed call to a vendor: whether and where to ask again, and after how long. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum

from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

FIRST_SECONDS = 0.5
MOST_SECONDS = 8.0
# A vendor that asks for a longer wait is not waited for: the caller is told how long it is.
MOST_RETRY_SECONDS = 60.0
# The same where another model can be asked instead.
MOST_RETRY_SECONDS_BESIDE_OTHERS = 2.0


class Remedy(Enum):
    """Who may answer where an endpoint failed to."""

    AGAIN = "the same endpoint after a while, or any other"
    ELSEWHERE = "another endpoint of the provider, or another model"
    ANOTHER_MODEL = "another model alone"
    NONE = "nobody: it is the caller's to know"


# What is not here, budgets and defects of ours among it, has none. A filter's refusal is an answer: no vendor is looked
# for that would let it pass. Of all codes AIP-194 retries UNAVAILABLE alone; a vendor's 429 and its timeouts are as
# passing, since they are of one endpoint and not of the whole service.
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

# Failures that lie with the endpoint itself, and open its breaker.
UNHEALTHY: frozenset[ErrorReason.ValueType] = frozenset(
    (
        error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
        error_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
        error_pb2.ERROR_REASON_PROVIDER_CONNECTION,
    )
)


def remedy(reason: ErrorReason.ValueType) -> Remedy:
    """Returns who may answer instead."""
    return _REMEDIES.get(reason, Remedy.NONE)


def wait_seconds(
    retry_delay: timedelta | None, attempt: int, chance: float, remaining_seconds: float, *, has_others: bool
) -> float | None:
    """Returns how long to wait before another attempt; None: it is not worth it, or past the caller's deadline.

    The vendor's own `retry_delay` is the wait; without one it is exponential in `attempt` (the first failed one is 0)
    with full jitter, by `chance` in [0, 1). `has_others`: another model can be asked at once.
    """
    if retry_delay is None:
        seconds = chance * min(MOST_SECONDS, FIRST_SECONDS * 2**attempt)
        longest = remaining_seconds
    else:
        seconds = retry_delay.total_seconds()
        longest = min(remaining_seconds, MOST_RETRY_SECONDS_BESIDE_OTHERS if has_others else MOST_RETRY_SECONDS)
    return seconds if seconds < longest else None
