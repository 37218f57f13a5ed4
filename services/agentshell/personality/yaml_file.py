"""Reads a YAML file of a pack, made of text, lists and mappings only, into a model, with the line of any error."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MAX_BYTES = 64 * 1024
_MAX_DEPTH = 16
_DEFAULT_TAGS = (None, "!")
# libyaml is twenty times as fast and never recurses. Base loaders give every scalar as text: `1.0` stays `1.0`.
_LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?")

Path = tuple[str | int, ...]
_Model = TypeVar("_Model", bound=BaseModel)


class PackError(ValueError):
    """A pack is malformed: in `file` (empty: the whole pack), at `line` (from 1; 0: the whole file).

    `others` is what else is wrong, as far as it was looked for.
    """

    def __init__(self, file: str, line: int, problem: str, others: Sequence[PackError] = ()) -> None:
        place = f"{file}:{line}" if line else file
        self.text = f"{place}: {problem}" if place else problem
        super().__init__(f"{self.text} (and {len(others)} more)" if others else self.text)
        self.file = file
        self.line = line
        self.others = others


class Lines(dict[Path, int]):
    """Where the keys of a file are: the line, from 1, of each path such as `("knowledge", "sources", 0)`."""

    def find(self, *path: str | int) -> int:
        """Returns the line of a key, or of the nearest key around it."""
        while path and path not in self:
            path = path[:-1]
        return self.get(path, 1)


def parse(model: type[_Model], file: str, content: bytes, typed: Collection[Path] = ()) -> tuple[_Model, Lines]:
    """Returns a file's contents and the lines of its keys. Raises PackError, with the line.

    Scalars are text, which the model converts; below the paths in `typed` they have the types of YAML 1.2.
    """
    value, lines = _read(file, content, typed, next(iter(model.model_fields)))
    try:
        return model.model_validate(value), lines
    except ValidationError as error:
        raise _explain(file, error, lines) from None


def decode(file: str, content: bytes) -> str:
    """Returns a file's text. Raises PackError, with the line, if it is not UTF-8 or has a NUL."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PackError(file, line, "not UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise PackError(file, text.count("\n", 0, text.index("\0")) + 1, "has a NUL character; remove it")
    return text


def _read(file: str, content: bytes, typed: Collection[Path], first_key: str) -> tuple[Any, Lines]:
    if len(content) > MAX_BYTES:
        raise PackError(file, 0, f"larger than {MAX_BYTES} bytes; move long texts into files of the pack")
    text = decode(file, content)
    try:
        next_event = cast("Callable[[], yaml.Event]", _LOADER(text).get_event)  # None only after the end.
        reader = _Reader(file, next_event, typed)
        value = reader.document()
        if value is None:
            raise PackError(file, 1, f"not a mapping; start with a line such as `{first_key}: ...`")
        if not reader.is_at_end():
            raise PackError(file, 1, "more than one document; keep one")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise PackError(file, line, f"not YAML: {error.problem}; fix the line") from None
    except yaml.YAMLError:
        raise PackError(
            file, 0, "not YAML: it has a character that is not allowed; remove control characters"
        ) from None
    return value, reader.lines


class _Reader:
    """Makes values from events: only text, lists and mappings, so that nothing can hide in them."""

    def __init__(self, file: str, next_event: Callable[[], yaml.Event], typed: Collection[Path]) -> None:
        self.lines = Lines()
        self._file = file
        self._next = next_event
        self._typed = typed

    def document(self) -> dict[str, Any] | None:
        """Returns the mapping that the file holds; None if it holds something else."""
        for _ in ("stream", "document"):
            self._next()
        first = self._next()
        return self.value(first, ()) if isinstance(first, yaml.MappingStartEvent) else None

    def is_at_end(self) -> bool:
        """Returns whether nothing follows the document."""
        self._next()  # Its end.
        return isinstance(self._next(), yaml.StreamEndEvent)

    def value(self, event: yaml.Event, path: Path) -> Any:
        """Returns the value that begins with `event`."""
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) or event.anchor:
            raise self._error(event, "aliases and anchors are not supported; write the value out")
        if event.tag not in _DEFAULT_TAGS:
            raise self._error(event, "tags such as `!!int` are not supported; write the value alone")
        if len(path) > _MAX_DEPTH:
            raise self._error(event, f"nested deeper than {_MAX_DEPTH} levels; no key needs that")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event) if path[:2] in self._typed else event.value
        return self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)

    def _list(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self._next(), yaml.SequenceEndEvent):
            place = (*path, len(items))
            self.lines[place] = _line(item)
            items.append(self.value(item, place))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "a key must be a word")
            key = str(self.value(event, ()))
            if key in values:
                raise self._error(event, f"{key!r} appears twice; remove one")
            place = (*path, key)
            self.lines[place] = _line(event)
            values[key] = self.value(self._next(), place)
        return values

    def _error(self, event: yaml.Event, problem: str) -> PackError:
        return PackError(self._file, _line(event), problem)


def _scalar(event: yaml.ScalarEvent) -> Any:
    """Returns a scalar with the type that YAML 1.2 gives it; a quoted one is text."""
    if not event.implicit[0]:
        return event.value
    if event.value in _CONSTANTS:
        return _CONSTANTS[event.value]
    if _NUMBER.fullmatch(event.value):
        return float(event.value) if set(event.value) & set(".eE") else int(event.value)
    return event.value


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _explain(file: str, error: ValidationError, lines: Lines) -> PackError:
    # An unknown key comes first: it is often why another is missing.
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first, *others = ((lines.find(*one["loc"]), _problem(one)) for one in found)
    return PackError(file, *first, [PackError(file, *other) for other in others])


def _problem(found: ErrorDetails) -> str:
    key = ".".join(str(part) for part in found["loc"])
    match found["type"]:
        case "extra_forbidden":
            problem = "unknown key; remove it, or correct its spelling"
        case "missing":
            problem = "missing; add it"
        case "value_error":
            problem = found["msg"].removeprefix("Value error, ")
        case _:
            problem = f"{found['msg'][:1].lower()}{found['msg'][1:]}, not {_shown(found['input'])}"
    return f"{key}: {problem}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
