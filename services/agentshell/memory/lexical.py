"""Vectors of hashed words and parts of words: they need no model, and capture no meaning. Pure.

Texts are close when they share words or spelling. Half of the vector counts stems, the other half grams of 3 to 5
characters, which find what a stem misses: names, typos, compounds, languages without a stemmer.
The same text gives the same vector in every process and release, because stored vectors depend on it.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import numpy as np
import snowballstemmer
from numpy.typing import NDArray

NAME = "lexical"
DIMENSIONS = 2048

_HALF = DIMENSIONS // 2
_HALF_BITS = 10
_GRAM_LENGTHS = (3, 4, 5)
_WORD = re.compile(r"[^\W_]+")
_SPACE = ord(" ")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: its products spread well.
_stem = cast("Callable[[str], str]", snowballstemmer.stemmer("english").stemWord)
# Words without content of their own. Leaving them out keeps two questions from being alike just for being questions.
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about all also am an and any are as at be because been but by can could did do does for from had has have "
        "he her his how i if in into is it its just may me more my no not of on or our out she should so some such "
        "than that the their them then there these they this those to too up us was we were what when where which who "
        "why will with would you your"
    )
)


def embed(text: str) -> NDArray[np.float32] | None:
    """Returns the text's vector, of length 1; None if the text has neither letters nor digits to compare."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if not words:
        return None
    vector = np.empty(DIMENSIONS, dtype=np.float32)
    vector[:_HALF] = _weigh(_stem_slots(words))
    vector[_HALF:] = _weigh(_gram_slots(words))
    return vector / np.float32(np.linalg.norm(vector))


def _weigh(slots: NDArray[np.intp]) -> NDArray[np.float32]:
    """Counts the slots, dampens frequent ones, and gives each half the same weight."""
    counts = np.log1p(np.bincount(slots, minlength=_HALF)).astype(np.float32)
    norm = np.float32(np.linalg.norm(counts))
    return counts / norm if norm else counts


def _stem_slots(words: list[str]) -> NDArray[np.intp]:
    return np.array([_stem_slot(word) for word in words if word not in _STOP_WORDS], dtype=np.intp)


@lru_cache(maxsize=65_536)
def _stem_slot(word: str) -> int:
    return zlib.crc32(_stem(word).encode()) % _HALF


def _gram_slots(words: list[str]) -> NDArray[np.intp]:
    """Hashes the grams of all words at once; a space marks where a word begins or ends, and no gram crosses one."""
    codes = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    is_space = codes == _SPACE
    slots: list[NDArray[np.intp]] = []
    for length in _GRAM_LENGTHS:
        count = len(codes) - length + 1
        if count <= 0:
            break
        hashes = np.full(count, length, dtype=np.uint64)
        crosses = np.zeros(count, dtype=np.bool_)
        for offset in range(length):
            hashes = hashes * _MULTIPLIER + codes[offset : offset + count]
            if 0 < offset < length - 1:
                crosses |= is_space[offset : offset + count]
        mixed = (hashes ^ (hashes >> np.uint64(29))) * _MULTIPLIER
        slots.append((mixed >> np.uint64(64 - _HALF_BITS))[~crosses].astype(np.intp))
    return np.concatenate(slots) if slots else np.empty(0, dtype=np.intp)
