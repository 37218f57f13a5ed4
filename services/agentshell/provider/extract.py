"""Answers from passages by quoting them: what the local provider does instead of a model. Pure and deterministic.

The pieces of the passages (markdown.py) are weighed by the stemmed words they share with the question, rare words more
than common ones; the best few are quoted in their own order, each passage's with a mark of its source. A question of
few words of its own, such as "and how do I stop it?", borrows those of the question before, at a lower weight.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import snowballstemmer

from agentshell.provider import markdown
from agentshell.provider.markdown import Kind
from kfm.content.v1 import content_pb2

# Bounds of the work of one question: what is beyond them is not read.
MAX_PASSAGES = 64
MAX_PASSAGE_CHARACTERS = 8 * 1024
MAX_QUESTION_CHARACTERS = 4 * 1024

_TITLE_SEPARATOR = " > "  # Between the headings that lead to a passage.

# Bounds of an answer.
_MAX_PIECES = 7
_MAX_QUOTED_CHARACTERS = 1500
_THIN_CHARACTERS = 240  # A shorter answer takes in what surrounds its best sentence.

_BORROWED_WEIGHT = 0.25
_FEW_WORDS = 3  # A question with fewer words of its own borrows.
_CONTEXT_WEIGHT = 0.45  # Of a word in the heading or the lead-in instead of the piece itself.
_REPEATED_WEIGHT = 0.45  # Of a word that an earlier choice has covered.
_RANK_WEIGHT = 0.03  # What each place in the order of passages costs.
_TITLE_WEIGHT = 1.0  # What a heading that asks the very question adds to all that stands under it.
# A piece that gains less than this share of the first is left out; from another passage it must gain more.
_LEAST_OF_BEST = 0.35
_LEAST_OF_BEST_ELSEWHERE = 0.6
_LEAST_COVERAGE = 0.5  # More than this share of the question must be spoken of for there to be an answer.
_TYPICAL_WORDS = 28  # Longer pieces are worth less a word.

_WORD = re.compile(r"[^\W_]+(?:['’][a-z]+)?")
_HOW = re.compile(r"\b(how|command|install|run|start|stop|configure|set|use|example)\b", re.I)
_WHAT = re.compile(r"^\W*(what|who|which|define|explain)\b", re.I)
_IS = re.compile(r"\b(?:is|are|means)\b")
_SUBJECT_WORDS = 4  # The most words that what is defined may have.
_TRUNCATED = re.compile(r"^[a-z]")
_COMMON = """
a about after again all also am an and any are as at be because been before being but by can could did do does doing
done for from get give had has have having he her here hers him his how i if in into is it its itself just let like
me mean means more most must my no nor not now of off on once only or other our out over own please same say says
shall she should show so some such tell than that the their them then there these they thing things this those
through to too under until up us very want was we were what when where which while who whom why will with would you
your yes ok okay thanks explain describe exactly need make happen happens each one two three every see meaning
"""
_STOP_WORDS = frozenset(_COMMON.split())


@dataclass(frozen=True, slots=True)
class Extract:
    """An answer. `citations` point into `text`; `found` is False where no passage fits and `text` says so."""

    text: str
    citations: tuple[content_pb2.Citation, ...] = ()
    found: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    """A unit of a passage with its words, its own and those around it."""

    passage: int
    position: int
    unit: markdown.Unit
    own: frozenset[str]
    around: frozenset[str]
    title: frozenset[str]  # The words of the nearest heading, and below of all of them.
    above: frozenset[str]
    lead: int  # The position of the sentence that introduces it; -1: none does.


def extract(questions: Sequence[str], passages: Sequence[content_pb2.Passage]) -> Extract:
    """Returns the answer to the last of `questions`, the user's messages from the oldest on, out of `passages`."""
    if not passages:
        return Extract(_NO_PASSAGES)
    passages = passages[:MAX_PASSAGES]
    question = questions[-1][:MAX_QUESTION_CHARACTERS] if questions else ""
    wanted = _wanted([text[:MAX_QUESTION_CHARACTERS] for text in questions])
    pieces = [piece for number, passage in enumerate(passages) for piece in _cut(number, passage)]
    weights = _weigh(wanted, pieces)
    chosen = _choose(question, weights, pieces)
    if not chosen or _coverage(wanted, weights, chosen) <= _LEAST_COVERAGE:
        return Extract(_nothing_fits(passages))
    return _compose(passages, _complete(chosen, pieces, wanted.keys()))


_NO_PASSAGES = (
    "I am the `local` provider. I have no model: I answer by quoting passages that come with a question, and none "
    "came with this one, so I have nothing to say about it.\n\n"
    "Ask about documents that were ingested into memory, or ask a provider with a model: set `OPENAI_API_KEY` or "
    "`ANTHROPIC_API_KEY` and name `openai` or `anthropic`."
)
_NOTICE = "*Quoted by the `local` provider, which has no model: the words are the documents' own.*"


def _nothing_fits(passages: Sequence[content_pb2.Passage]) -> str:
    names = list(dict.fromkeys(_name(passage) for passage in passages))[:3]
    nearest = "\n".join(f"- {name}" for name in names)
    return (
        "I found no answer in the documents. I am the `local` provider: I have no model and only quote passages, and "
        f"none of those at hand answers this. The nearest were:\n\n{nearest}"
    )


# --- words


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return str(_STEMMER.stemWord(word))  # pyright: ignore[reportUnknownArgumentType] - it has no types


_STEMMER = snowballstemmer.stemmer("english")


def _words(text: str) -> list[str]:
    lowered = (word.lower().replace("’", "'").removesuffix("'s") for word in _WORD.findall(text))
    return [_stem(word) for word in lowered if word not in _STOP_WORDS]


def _wanted(questions: Sequence[str]) -> dict[str, float]:
    """Returns the words to look for and how much each is wanted."""
    if not questions:
        return {}
    wanted = dict.fromkeys(_words(questions[-1]), 1.0)
    if len(wanted) < _FEW_WORDS and len(questions) > 1:
        for word in _words(questions[-2]):
            wanted.setdefault(word, _BORROWED_WEIGHT)
    return wanted


def _weigh(wanted: Mapping[str, float], pieces: Sequence[_Piece]) -> dict[str, float]:
    """Returns the weight of each wanted word that occurs: rare words weigh more."""
    occurrences = Counter(word for piece in pieces for word in (piece.own | piece.around) & wanted.keys())
    return {word: wanted[word] * math.log(1 + len(pieces) / (0.5 + number)) for word, number in occurrences.items()}


# --- pieces


def _cut(number: int, passage: content_pb2.Passage) -> list[_Piece]:
    pieces: list[_Piece] = []
    titles = passage.title.split(_TITLE_SEPARATOR)
    above = frozenset(_words(passage.title))
    lead = -1
    for position, unit in enumerate(markdown.units(passage.text[:MAX_PASSAGE_CHARACTERS])):
        is_led = lead >= 0 and unit.block == pieces[lead].unit.block + 1
        title = frozenset(_words(unit.heading or titles[-1]))
        around = above | title | (pieces[lead].own if is_led else frozenset[str]())
        own = frozenset(_words(unit.text))
        pieces.append(_Piece(number, position, unit, own, around, title, above, lead if is_led else -1))
        if unit.kind is Kind.SENTENCE:
            lead = position if unit.text.rstrip("*_ ").endswith(":") else -1
    return pieces


def _choose(question: str, weights: Mapping[str, float], pieces: Sequence[_Piece]) -> list[_Piece]:
    """Returns the pieces that together say the most, best first, none saying what another has said."""
    chosen: list[_Piece] = []
    texts: set[str] = set()
    covered: set[str] = set()
    candidates = list(pieces)
    first_gain, characters = 0.0, 0
    while candidates and len(chosen) < _MAX_PIECES:
        gains = [_gain(question, weights, covered, piece) for piece in candidates]
        gain = max(gains)
        best = candidates.pop(gains.index(gain))
        first_gain = first_gain or gain
        if gain <= 0 or gain < first_gain * _LEAST_OF_BEST:
            break
        if chosen and best.passage != chosen[0].passage and gain < first_gain * _LEAST_OF_BEST_ELSEWHERE:
            continue
        if best.unit.text in texts or (chosen and characters + len(best.unit.text) > _MAX_QUOTED_CHARACTERS):
            continue
        chosen.append(best)
        texts.add(best.unit.text)
        covered |= best.own & weights.keys()
        characters += len(best.unit.text)
    return chosen


def _gain(question: str, weights: Mapping[str, float], covered: set[str], piece: _Piece) -> float:
    gain = 0.0
    for word, weight in weights.items():
        if word in piece.own:
            gain += weight * (_REPEATED_WEIGHT if word in covered else 1.0)
        elif word in piece.around:
            gain += weight * _CONTEXT_WEIGHT * (_REPEATED_WEIGHT if word in covered else 1.0)
    if not gain:
        return 0.0
    size = len(_WORD.findall(piece.unit.text))
    gain /= 1 + max(0, size - _TYPICAL_WORDS) / (3 * _TYPICAL_WORDS)
    is_cut = piece.position == 0 and bool(_TRUNCATED.match(piece.unit.text))
    if is_cut or (size < 4 and piece.unit.kind is Kind.SENTENCE):
        gain *= 0.5  # A fragment.
    if piece.unit.kind in (Kind.CODE, Kind.STEPS) and _HOW.search(question):
        gain *= 1.3
    if _WHAT.match(question) and _defines(piece.unit, weights):
        gain *= 1.5
    asked = sum(weights[word] for word in (piece.title | piece.above) & weights.keys()) / sum(weights.values())
    gain *= 1 + _TITLE_WEIGHT * asked * len(piece.title & weights.keys()) / max(1, len(piece.title))
    return gain * max(0.5, 1 - _RANK_WEIGHT * piece.passage)


def _defines(unit: markdown.Unit, weights: Mapping[str, float]) -> bool:
    """Whether a sentence says what a wanted word is: "A turn is ...", or "... is a turn"."""
    match = _IS.search(unit.text) if unit.kind is Kind.SENTENCE else None
    if match is None:
        return False
    before, after = _words(unit.text[: match.start()]), _words(unit.text[match.end() :])
    return bool(weights.keys() & {*before[:2], *after[:1]}) and len(before) <= _SUBJECT_WORDS


def _coverage(wanted: Mapping[str, float], weights: Mapping[str, float], chosen: Sequence[_Piece]) -> float:
    """Returns which share of the question the chosen pieces speak of; a word that occurs nowhere counts the most."""
    rarest = max((weights[word] / wanted[word] for word in weights), default=1.0)
    total = sum(weights.get(word, want * rarest) for word, want in wanted.items())
    spoken = {word for piece in chosen for word in piece.own | piece.around}
    return sum(weight for word, weight in weights.items() if word in spoken) / total if total else 0.0


def _complete(chosen: Sequence[_Piece], pieces: Sequence[_Piece], wanted: Set[str]) -> list[_Piece]:
    """Returns the chosen, the best passage first and each in its own order, with what they cannot stand without.

    That is what introduces them, what they introduce, and, where they are little, what surrounds the best of them.
    """
    at = {(piece.passage, piece.position): piece for piece in pieces}
    kept = {(piece.passage, piece.position) for piece in chosen}
    kept |= _surroundings(chosen, at, wanted)
    for place in sorted(kept):
        if at[place].lead >= 0:
            kept.add((place[0], at[place].lead))
        after = at.get((place[0], place[1] + 1))
        while after is not None and after.lead == place[1]:
            kept.add((after.passage, after.position))
            after = at.get((after.passage, after.position + 1))
    best_first = list(dict.fromkeys(piece.passage for piece in chosen))
    return [at[place] for place in sorted(kept, key=lambda place: (best_first.index(place[0]), place[1]))]


def _surroundings(
    chosen: Sequence[_Piece], at: Mapping[tuple[int, int], _Piece], wanted: Set[str]
) -> set[tuple[int, int]]:
    """Returns the sentences that a thin answer takes in of the paragraph of its best.

    Those before it only where the heading is asked for: then the paragraph answers from its beginning on.
    """
    taken: set[tuple[int, int]] = set()
    characters = sum(len(piece.unit.text) for piece in chosen)
    best = chosen[0]
    for step in (-1, 1) if best.title & wanted else (1,):
        place = (best.passage, best.position + step)
        while characters < _THIN_CHARACTERS and best.unit.kind is Kind.SENTENCE and place in at:
            if at[place].unit.block != best.unit.block:
                break
            taken.add(place)
            characters += len(at[place].unit.text)
            place = (best.passage, place[1] + step)
    return taken


# --- the answer


def _compose(passages: Sequence[content_pb2.Passage], pieces: Sequence[_Piece]) -> Extract:
    text = ""
    citations: list[content_pb2.Citation] = []
    numbers: dict[str, int] = {}
    for index, group in groupby(pieces, lambda piece: piece.passage):
        passage = passages[index]
        number = numbers.setdefault(_name(passage), len(numbers) + 1)
        text += "\n\n" if text else ""
        start = len(text)
        text += _quote(passage, list(group), number)
        citations.append(
            content_pb2.Citation(
                record_id=passage.record_id,
                source_uri=passage.source_uri,
                title=passage.title,
                start_index=start,
                end_index=len(text),
            )
        )
    sources = "\n".join(f"- [{number}] {name}" for name, number in numbers.items())
    return Extract(f"{text}\n\nSources:\n\n{sources}\n\n{_NOTICE}", tuple(citations), found=True)


def _quote(passage: content_pb2.Passage, pieces: Sequence[_Piece], number: int) -> str:
    """Returns a passage's pieces as Markdown: each run of prose or of items ends with the mark of its source."""
    blocks: list[tuple[Kind, str]] = []
    for _, group in groupby(pieces, lambda piece: piece.unit.block):
        units = [piece.unit for piece in group]
        joint = " " if units[0].kind is Kind.SENTENCE else "\n"
        blocks.append((units[0].kind, joint.join(unit.text for unit in units)))
    marked = max((at for at, (kind, _) in enumerate(blocks) if kind not in (Kind.CODE, Kind.TABLE)), default=-1)
    quoted = [f"{text} [{number}]" if at == marked else text for at, (_, text) in enumerate(blocks)]
    if marked < 0:
        heading = pieces[0].unit.heading or passage.title.split(_TITLE_SEPARATOR)[-1] or "From the source"
        quoted.insert(0, f"{heading} [{number}]")
    return "\n\n".join(quoted)


def _name(passage: content_pb2.Passage) -> str:
    if passage.title and passage.source_uri:
        return f"{passage.title} ({passage.source_uri})"
    return passage.title or passage.source_uri or passage.record_id or "a passage of the request"
