"""The cases of a pack, in `tests/*.yaml`: how its author expects it to answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agentshell.personality import yaml_file
from agentshell.personality.yaml_file import PackError

DIRECTORY = "tests"
_SHOWN_CHARACTERS = 200


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}; fix it") from None
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Case(_Section):
    """One question, and what is expected of the turn that answers it."""

    name: str = Field(min_length=1, max_length=128)
    """Its name."""
    input: str = Field(min_length=1)
    """The question."""
    tools: tuple[str, ...] | None = None
    """All tools that are called, in any order; `[]`: none; left out: any."""
    contains: tuple[str, ...] = ()
    """Texts that the answer contains, ignoring case."""
    not_contains: tuple[str, ...] = ()
    """Texts that it does not contain, ignoring case."""
    matches: tuple[Annotated[str, AfterValidator(_expression)], ...] = ()
    """Python regular expressions, each of which matches somewhere in it."""


class _File(_Section):
    cases: Annotated[tuple[Case, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a case's turn."""

    text: str
    tools: Collection[str]
    failure: str = ""
    """Why there is no answer; empty: there is one."""


def parse(files: Mapping[str, bytes]) -> dict[str, Case]:
    """Returns the cases of a pack by name, in the order of its files. Raises PackError, with the line."""
    cases: dict[str, Case] = {}
    for path in sorted(files):
        if path.startswith(f"{DIRECTORY}/") and path.endswith((".yaml", ".yml")):
            read, lines = yaml_file.parse(_File, path, files[path])
            for index, case in enumerate(read.cases):
                if case.name in cases:
                    raise PackError(
                        path, lines.find("cases", index, "name"), f"{case.name!r} appears twice; rename one"
                    )
                cases[case.name] = case
    return cases


def problems(case: Case, outcome: Outcome) -> Iterator[str]:
    """Yields how a turn differed from what was expected."""
    if outcome.failure:
        yield f"no answer: {outcome.failure}"
        return
    text = outcome.text.casefold()
    if case.tools is not None and sorted(set(case.tools)) != (called := sorted(set(outcome.tools))):
        yield f"called {', '.join(called) or 'no tool'}, not {', '.join(sorted(set(case.tools))) or 'none'}"
    missing = [f"does not contain {wanted!r}" for wanted in case.contains if wanted.casefold() not in text]
    missing += [f"contains {unwanted!r}" for unwanted in case.not_contains if unwanted.casefold() in text]
    missing += [f"does not match {wanted!r}" for wanted in case.matches if not re.search(wanted, outcome.text)]
    yield from missing
    if missing:
        yield f"the answer: {_shortened(outcome.text)}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
