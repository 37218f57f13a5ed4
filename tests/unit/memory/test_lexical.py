"""The lexical embedder: stable vectors of length 1, near for texts that share words or spelling."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.memory import lexical


def _similarity(one: str, other: str) -> float:
    first, second = lexical.embed(one), lexical.embed(other)
    assert first is not None
    assert second is not None
    return float(first @ second)


def test_the_vector_of_a_text_is_the_same_in_every_process_and_release() -> None:
    vector = lexical.embed("Durable logs, replayed: naïve Größen and 日本語.")
    assert vector is not None
    filled = np.flatnonzero(vector).astype("<u2").tobytes()
    assert hashlib.sha256(filled).hexdigest() == "eae8c1738f345d7796f2a2c970df7ddec89d45d510857d97bab1d2cedd8e8a5e"


def test_texts_that_share_stems_are_nearer_than_texts_that_share_only_their_form() -> None:
    question = "How are logs replayed?"
    assert _similarity(question, "Replaying a log") > 2 * _similarity(question, "How are cats fed?")


def test_a_typing_error_stays_near() -> None:
    assert _similarity("retention", "retenton") > 2 * _similarity("retention", "personality")


def test_case_and_compatibility_forms_do_not_count() -> None:
    assert _similarity("ＦＩＬＥ Straße", "file STRASSE") > 0.999


@given(st.text(max_size=200))
@settings(max_examples=100)
def test_a_vector_has_length_1_and_there_is_none_without_letters_and_digits(text: str) -> None:
    vector = lexical.embed(text)
    if vector is None:
        assert not any(character.isalpha() or character.isdecimal() for character in text)
    else:
        assert vector.shape == (lexical.DIMENSIONS,)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
