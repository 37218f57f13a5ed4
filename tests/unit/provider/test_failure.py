"""Vendors' failures become our reasons, and their messages are shown without secrets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agentshell.provider.adapters import failure
from agentshell.provider.adapters.failure import Failure, Kind
from agentshell.provider.key import Key
from kfm.error.v1 import error_pb2

STATUSES = {
    400: error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID,
    401: error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID,
    402: error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID,
    403: error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID,
    404: error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    408: error_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
    409: error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
    413: error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID,
    422: error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID,
    429: error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED,
    500: error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
    502: error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
    503: error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
    529: error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE,
}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Failure(Kind.TIMEOUT), error_pb2.ERROR_REASON_PROVIDER_TIMEOUT),
        (Failure(Kind.CONNECTION), error_pb2.ERROR_REASON_PROVIDER_CONNECTION),
        (Failure(Kind.MALFORMED), error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID),
        *((Failure(Kind.ANSWERED, status), reason) for status, reason in STATUSES.items()),
        (Failure(Kind.ANSWERED, 418), error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID),
        (Failure(Kind.ANSWERED, 599), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
        (Failure(Kind.ANSWERED, 302), error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID),
        (Failure(Kind.ANSWERED, 504), error_pb2.ERROR_REASON_PROVIDER_TIMEOUT),
        (Failure(Kind.ANSWERED, 400, "API_KEY_INVALID"), error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID),
        (Failure(Kind.ANSWERED, 429, "RESOURCE_EXHAUSTED"), error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED),
        # When the money is spent, retries only add to the load.
        (Failure(Kind.ANSWERED, 429, "insufficient_quota"), error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID),
        # The vendor's own error code takes precedence over the status, which is 200 within a stream.
        (Failure(Kind.ANSWERED, 200, "overloaded_error"), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
        (Failure(Kind.ANSWERED, 400, "model_not_found"), error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        (
            Failure(Kind.ANSWERED, 400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum of 8."),
            error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG,
        ),
        (
            Failure(Kind.ANSWERED, 400, message="This model's maximum context length is 8 tokens"),
            error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG,
        ),
    ],
)
def test_each_kind_of_failure_has_one_reason(found: Failure, reason: error_pb2.ErrorReason.ValueType) -> None:
    assert failure.reason(found) == reason


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("Incorrect API key provided: sk-proj-ab**yz.", "Incorrect API key provided: [key]"),
        ("key hunter2 is unknown", "key [key] is unknown"),
        ("sent Authorization: Bearer abc.def", "sent Authorization: Bearer [key]"),
        ("API key not valid: AIzaSyA-b_c", "API key not valid: [key]"),
        ("POST https://g.example/v1?key=abc&alt=sse failed", "POST https://g.example/v1?key=[key]&alt=sse failed"),
        ("a risk-free task-list", "a risk-free task-list"),
        ("x" * 600, "x" * 500),
    ],
)
def test_a_vendors_words_are_shown_without_what_looks_like_a_key(words: str, shown: str) -> None:
    assert failure.redact(words, "hunter2") == shown


ANTHROPIC = {"type": "rate_limit_error", "message": "no", "details": {"error_code": "x"}}
SPENT = {"error_code": "enforced_spend_limit_reached"}
GOOGLE = {"code": 400, "message": "no", "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}
BODIES: list[tuple[Any, str, str]] = [
    ({"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}}, "invalid_api_key", "no"),
    ({"message": "no", "type": "server_error", "code": None}, "server_error", "no"),
    ({"error": {"message": "no", "type": "tokens", "code": 429}}, "tokens", "no"),
    ({"type": "error", "error": ANTHROPIC}, "rate_limit_error", "no"),
    ({"error": {**ANTHROPIC, "details": SPENT}}, "enforced_spend_limit_reached", "no"),
    ({"error": GOOGLE}, "API_KEY_INVALID", "no"),
    ([{"error": {**GOOGLE, "details": []}}], "INVALID_ARGUMENT", "no"),
    ("<html>Bad gateway</html>", "", "<html>Bad gateway</html>"),
    (["?"], "", "['?']"),
    (None, "", ""),
]


@pytest.mark.parametrize(("body", "code", "message"), BODIES)
def test_the_name_of_an_error_that_says_the_most_is_found_in_each_vendors_form(
    body: Any, code: str, message: str
) -> None:
    assert failure.answered(400, {}, body) == Failure(Kind.ANSWERED, 400, code, message)


def _google(delay: str) -> dict[str, Any]:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    return {"error": {"code": 429, "details": [{"@type": "type.googleapis.com/google.rpc.Help"}, info]}}


_NOW = {"date": "Sat, 21 Nov 2026 15:00:00 GMT"}


DELAYS: list[tuple[dict[str, str], Any, float | None]] = [
    ({"retry-after": "7"}, None, 7),
    ({"retry-after": "0"}, None, 0),
    ({"retry-after": "2", "retry-after-ms": "1500"}, None, 1.5),
    ({"retry-after": "Sat, 21 Nov 2026 15:00:30 GMT", **_NOW}, None, 30),
    ({"retry-after": "Sat, 21 Nov 2026 14:00:00 GMT", **_NOW}, None, 0),
    ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None, 0),
    ({}, _google("34.5s"), 34.5),
    ({}, [_google("34.5s")], 34.5),
    ({"retry-after": "7"}, _google("34.5s"), 7),
    ({}, None, None),
    ({"retry-after": "-1"}, None, None),
    ({"retry-after": "nan"}, None, None),
    ({"retry-after": "1e9"}, None, None),
    ({"retry-after": "soon"}, {"error": {"details": [3, {}]}}, None),
    ({"retry-after": "Sat, 21 Nov 2026 15:00:30", **_NOW}, None, None),
]


@pytest.mark.parametrize(("headers", "body", "seconds"), DELAYS)
def test_how_long_a_vendor_says_to_wait_is_read_in_each_form(
    headers: dict[str, str], body: Any, seconds: float | None
) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)

    assert failure.answered(429, headers, body).retry_delay == expected


@pytest.mark.parametrize(("status", "is_told"), [(429, True), (503, True), (400, False), (401, False)])
def test_a_delay_is_told_only_where_trying_again_can_help(status: int, is_told: bool) -> None:
    delay = timedelta(seconds=7)
    key = Key("openai", "OPENAI_API_KEY", environment={"OPENAI_API_KEY": "hunter2"})
    found = Failure(Kind.ANSWERED, status, message="key hunter2", retry_delay=delay)

    error = failure.error(found, "openai", "m", key, None)

    assert error.retry_delay == (delay if is_told else None)
    assert error.metadata == {
        "provider": "openai",
        "model": "m",
        "status": str(status),
        "vendor_message": "key [key]",
    }
