"""Vendors' failures become our reasons, and their words are shown without secrets."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agentshell.provider.adapters import failure
from agentshell.provider.adapters.failure import Failure, Kind
from kfm.error.v1 import error_pb2


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Failure(Kind.TIMEOUT), error_pb2.ERROR_REASON_PROVIDER_TIMEOUT),
        (Failure(Kind.CONNECTION), error_pb2.ERROR_REASON_PROVIDER_CONNECTION),
        (Failure(Kind.MALFORMED), error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID),
        (Failure(Kind.ANSWERED, 418), error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID),
        (Failure(Kind.ANSWERED, 599), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
        (Failure(Kind.ANSWERED, 302), error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID),
        (Failure(Kind.ANSWERED, 504), error_pb2.ERROR_REASON_PROVIDER_TIMEOUT),
        # The vendor's own name of an error goes before the status, which within a stream is 200.
        (Failure(Kind.ANSWERED, 200, "overloaded_error"), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
        (Failure(Kind.ANSWERED, 400, "model_not_found"), error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
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
        ("x" * 600, "x" * 500),
    ],
)
def test_a_vendors_words_are_shown_without_what_looks_like_a_key(words: str, shown: str) -> None:
    assert failure.redact(words, "hunter2") == shown


@pytest.mark.parametrize(
    ("header", "delay"),
    [("7", timedelta(seconds=7)), ("", None), ("-1", None), ("nan", None), ("1e9", None), ("Wed, 21 Oct", None)],
)
def test_only_a_sensible_retry_after_becomes_a_delay(header: str, delay: timedelta | None) -> None:
    found = Failure(Kind.ANSWERED, 429, retry_after=header)

    assert failure.error(found, "openai", "m", "k", None).retry_delay == delay
