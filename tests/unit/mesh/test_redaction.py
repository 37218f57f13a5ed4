"""What is removed from texts before they are logged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.mesh.redaction import redact, redact_all

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
HOSTILE = ("a" * 20_000, "1 " * 10_000, "AT00 " * 5_000, "+1 2" * 5_000, "bearer " * 3_000, "a@" * 9_000, "-" * 20_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key sk-proj-abcdefghijklmnop1234 refused", "key [secret] refused"),
        ("ask_0123456789abcdef0123", "[secret]"),
        ("Authorization: Bearer abc.def-123456", "Authorization: [secret]"),
        (f"token {TOKEN}.", "token [secret]."),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ("password='hunter2hunter2' is wrong", "[secret]' is wrong"),
        ("GET https://x.org/?a=1&token=abc&b=2", "GET https://x.org/?a=1&[secret]&b=2"),
        ("postgresql://ann:pw@host/db", "postgresql://[secret]host/db"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[secret]"),
        ("ask ann.b+c@mail.example.org now", "ask [email] now"),
        ("card 4111 1111 1111 1111, please", "card [card], please"),
        ("card 4111 1111 1111 1112, please", "card 4111 1111 1111 1112, please"),
        ("to AT61 1904 3002 3457 3201 today", "to [iban] today"),
        ("AT61 1904 3002 3457 3202", "AT61 1904 3002 3457 3202"),
        ("call +43 1 234 5678 90.", "call [phone]."),
        ("turn 01JD3K9W at 2026-11-21T18:21:54Z, 17 of 1700000000000000000 in 127.0.0.1:7700", None),
        ("sha256:db07b224d69c63b50124e5596f6372bf11c151fb790ead3e04ded0e3df915af1", None),
        ("'page_token' is another query's; the bearer of this is basic", None),
    ],
)
def test_secrets_and_what_names_a_person_are_replaced_by_their_kind(text: str, expected: str | None) -> None:
    assert redact(text) == (text if expected is None else expected)


def test_texts_are_found_wherever_they_are_in_an_event() -> None:
    event = {"a": ["x@y.org", {"b": ("AKIAIOSFODNN7EXAMPLE", 4111111111111111)}], "n": None}

    assert redact_all(event) == {"a": ["[email]", {"b": ["[secret]", 4111111111111111]}], "n": None}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:5])
def test_a_hostile_text_is_read_once(text: str) -> None:
    assert len(redact(text)) <= 16_400


@settings(max_examples=60)
@given(st.text(), st.sampled_from(("ann@example.org", "sk-abcdefghijklmnopqrst", "4111111111111111")))
def test_a_secret_is_found_in_any_text(around: str, secret: str) -> None:
    assert secret not in redact(f"{around} {secret} {around}")
