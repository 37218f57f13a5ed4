"""Which failures are worth a retry, where, and after how long."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentshell.provider import backoff
from agentshell.provider.backoff import Remedy, remedy, wait_seconds
from kfm.error.v1.error_pb2 import ErrorReason

SECONDS = st.floats(0, 1000)
CHANCES = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("PROVIDER_RATE_LIMITED PROVIDER_UNAVAILABLE PROVIDER_TIMEOUT PROVIDER_CONNECTION", Remedy.AGAIN),
        ("PROVIDER_CIRCUIT_OPEN OVERLOADED PROVIDER_KEY_INVALID", Remedy.ELSEWHERE),
        ("MODEL_NOT_FOUND PROVIDER_CONTEXT_TOO_LONG PROVIDER_REQUEST_INVALID", Remedy.ANOTHER_MODEL),
        ("PROVIDER_RESPONSE_INVALID FEATURE_UNSUPPORTED", Remedy.ANOTHER_MODEL),
        ("BUDGET_EXHAUSTED TOKEN_LIMIT COST_LIMIT PRICE_UNKNOWN PROVIDER_CONTENT_FILTERED", Remedy.NONE),
        ("CANCELLED DEADLINE_EXCEEDED INTERNAL DATABASE_UNAVAILABLE", Remedy.NONE),
    ],
)
def test_each_reason_has_one_remedy(names: str, expected: Remedy) -> None:
    reasons = [ErrorReason.Value(f"ERROR_REASON_{name}") for name in names.split()]
    assert [remedy(reason) for reason in reasons] == [expected] * len(reasons)


@given(st.integers(0, 30), CHANCES, SECONDS, st.booleans())
def test_a_wait_grows_to_a_bound_and_is_never_past_the_deadline(
    attempt: int, chance: float, remaining: float, has_others: bool
) -> None:
    wait = wait_seconds(None, attempt, chance, remaining, has_others=has_others)

    full = chance * min(backoff.MOST_SECONDS, backoff.FIRST_SECONDS * 2**attempt)
    assert wait == (full if full < remaining else None)


@given(st.integers(0, 30), CHANCES, SECONDS, SECONDS, st.booleans())
def test_a_vendor_that_says_how_long_is_waited_for_as_long_or_not_at_all(
    attempt: int, chance: float, remaining: float, asked: float, has_others: bool
) -> None:
    delay = timedelta(seconds=asked)
    wait = wait_seconds(delay, attempt, chance, remaining, has_others=has_others)

    longest = backoff.MOST_RETRY_SECONDS_BESIDE_OTHERS if has_others else backoff.MOST_RETRY_SECONDS
    seconds = delay.total_seconds()
    assert wait == (seconds if seconds < min(remaining, longest) else None)
