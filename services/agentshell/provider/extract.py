"""Answers questions by quoting passages, as the local provider does in place of a model. Pure and deterministic.

A passage fits a question by how many of the question's words it has, rare words counting more, and by how similar its
heading is to the question. The best-fitting passage (of equals, the one found first) is quoted in whole blocks, and so
is the next one if it fits nearly as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import snowballstemmer

from agentshell.provider import markdown
from kfm.content.v1.content_pb2 import Citation, Passage

# Limits on the work for one question: nothing beyond them is read.
MAX_PASSAGES = 32
MAX_PASSAGE_CHARACTERS = 8 * 1024
MAX_QUESTION_CHARACTERS = 4 * 1024
_MAX_QUOTED_CHARACTERS = 900  # In an answer; a larger block is quoted alone.
_MAX_QUOTED_PASSAGES = 2

# A passage's fit: from 0 to 1 by its words, and up to twice as much by its heading.
_HEADING_WEIGHT = 2.0
_RANK_COST = 0.05  # For each place further down in the order in which the passages were found.
_LEAST_FIT = 0.5  # A passage that fits no better is no answer.
_NEARLY = 0.85  # A passage with more than this share of the best fit is quoted too.
# A question with few words, such as "and how do I stop it?", also counts the one before; with none it is that one.
_FEW_WORDS = 3
_BEFORE_WEIGHT = 0.25

_TITLE_SEPARATOR = " > "  # Between the headings that lead to a passage.
_WORD = re.compile(r"[^\W_]+(?:['’][a-z]+)?")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about after again all already also am an and any are as at be because been before being but by can could "
        "did do does for from had has have he her him his how i if in into is it its just may me might more most must "
        "my no not now of on one or other our out over own shall she should so some such than that the their them "
        "then there these they this those through to too under until up us use very was we were what when where which "
        "while who whom whose why will with would you your"
    )
)

_NO_PASSAGES = (
    "I am the `local` provider. I have no model: I answer by quoting passages that come with a question, and none "
    "came with this one, so I have nothing to say about it.\n\n"
    "Ask about documents that were ingested into memory, or ask a provider with a model: set `OPENAI_API_KEY` or "
    "`ANTHROPIC_API_KEY` and name `openai` or `anthropic`."
)
_NOTHING_FITS = (
    "I found no answer in the documents. I am the `local` provider: I have no model and only quote passages, and "
    "none of those at hand answers this. The nearest were:\n"
)
_NOTICE = "*Quoted by the `local` provider, which has no model: the words are the documents' own.*"
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class Extract:
    """An answer. `citations` point into `text`; `found` is False if no passage fits, as `text` then says."""

    text: str
    citations: tuple[Citation, ...] = ()
    found: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    """A passage, the part of its text that is read, the words of its last heading, and all of its words."""

    passage: Passage
    text: str
    heading: frozenset[str]
    words: frozenset[str]


def extract(questions: Sequence[str], passages: Sequence[Passage]) -> Extract:
    """Returns the answer to the last of `questions`, which are the user's messages, oldest first.

    `passages` are in the order in which a search ranked them, best first.
    """
    sources = [source for passage in passages[:MAX_PASSAGES] if (source := _read(passage)).text]
    if not sources:
        return Extract(_NO_PASSAGES)
    last_two = ["", "", *questions][-2:]
    before, asked = (_weigh(_words(question[:MAX_QUESTION_CHARACTERS]), sources) for question in last_two)
    asked = asked or before
    fits = [_fit(asked, source) - _RANK_COST * rank for rank, source in enumerate(sources)]
    if max(fits) <= _LEAST_FIT:
        nearest = list(dict.fromkeys(_name(source.passage) for source in sources))[:_NEAREST]
        return Extract("\n".join([_NOTHING_FITS, *(f"- {name}" for name in nearest)]))
    if len(asked) < _FEW_WORDS:
        fits = [fit + _BEFORE_WEIGHT * _fit(before, source) for fit, source in zip(fits, sources, strict=True)]
    best_first = sorted(range(len(sources)), key=lambda at: -fits[at])[:_MAX_QUOTED_PASSAGES]
    least = max(_LEAST_FIT, _NEARLY * fits[best_first[0]])
    return _compose([sources[at] for at in best_first if fits[at] > least], asked)


# --- how well a passage fits


_stem = lru_cache(maxsize=65_536)(cast("Callable[[str], str]", snowballstemmer.stemmer("english").stemWord))


def _words(text: str) -> frozenset[str]:
    lowered = {word.replace("’", "'").removesuffix("'s") for word in _WORD.findall(text.lower())}
    return frozenset(_stem(word) for word in lowered - _STOP_WORDS)


def _read(passage: Passage) -> _Source:
    text = passage.text.strip()[:MAX_PASSAGE_CHARACTERS]
    return _Source(passage, text, _words(_heading(passage)), _words(passage.title) | _words(text))


def _weigh(words: AbstractSet[str], sources: Sequence[_Source]) -> dict[str, float]:
    """Returns each word's share of the question: the fewer passages have it, the larger (none counts as one)."""
    counts = {word: sum(word in source.words for source in sources) for word in sorted(words)}
    weights = {word: math.log(1 + len(sources) / max(1, count)) for word, count in counts.items()}
    total = sum(weights.values())
    return {word: weight / total for word, weight in weights.items()}


def _covered(asked: Mapping[str, float], words: AbstractSet[str]) -> float:
    """Returns the share of the question that the words cover."""
    return sum(weight for word, weight in asked.items() if word in words)


def _fit(asked: Mapping[str, float], source: _Source) -> float:
    """Returns from 0 to 1 + _HEADING_WEIGHT. A heading is as similar to the question as the two overlap."""
    alike = 0.0
    if covered := _covered(asked, source.heading):
        share = len(source.heading & asked.keys()) / len(source.heading)
        alike = 2 * covered * share / (covered + share)  # The harmonic mean.
    return _covered(asked, source.words) + _HEADING_WEIGHT * alike


# --- the answer


def _compose(sources: Sequence[_Source], asked: Mapping[str, float]) -> Extract:
    text = ""
    citations: list[Citation] = []
    quoted: set[str] = set()
    numbers: dict[str, int] = {}
    for source in sources:
        passage = source.passage
        blocks = _relevant(source, asked, quoted, _MAX_QUOTED_CHARACTERS - len(text))
        if not blocks:
            continue
        quoted.update(blocks)
        number = numbers.setdefault(_name(passage), len(numbers) + 1)
        text += "\n\n" if text else ""
        start = len(text)
        text += "\n\n".join(_marked(blocks, passage, number))
        where = {"record_id": passage.record_id, "source_uri": passage.source_uri, "title": passage.title}
        citations.append(Citation(**where, start_index=start, end_index=len(text)))
    listed = "\n".join(f"- [{number}] {name}" for name, number in numbers.items())
    return Extract(f"{text}\n\nSources:\n\n{listed}\n\n{_NOTICE}", tuple(citations), found=True)


def _relevant(source: _Source, asked: Mapping[str, float], quoted: AbstractSet[str], room: int) -> list[str]:
    """Returns the blocks to quote in order: those with words of the question, or all if the heading has any or none do.

    If room is short, the blocks with the most of the question are kept; an answer's first block always fits.
    """
    groups = [group for group in markdown.groups(source.text) if group[-1] not in quoted]
    worth = [_covered(asked, _words(" ".join(group))) for group in groups]
    takes_all = bool(source.heading & asked.keys()) or not any(worth)
    kept: list[int] = []
    for at in sorted(range(len(groups)), key=lambda at: -worth[at]):
        size = sum(map(len, groups[at]))
        if (takes_all or worth[at]) and (size <= room or not (kept or quoted)):
            kept.append(at)
            room -= size
    return [block for at in sorted(kept) for block in groups[at]]


def _marked(blocks: Sequence[str], passage: Passage, number: int) -> list[str]:
    """Returns the blocks, with their source's number on the last one that can carry it."""
    for at in reversed(range(len(blocks))):
        if markdown.is_prose(blocks[at]):
            return [*blocks[:at], f"{blocks[at]} [{number}]", *blocks[at + 1 :]]
    return [f"{_heading(passage) or 'From the source'} [{number}]", *blocks]


def _heading(passage: Passage) -> str:
    return passage.title.rpartition(_TITLE_SEPARATOR)[2]


def _name(passage: Passage) -> str:
    if passage.title and passage.source_uri:
        return f"{passage.title} ({passage.source_uri})"
    return passage.title or passage.source_uri or passage.record_id or "a passage of the request"
