"""JSON: what fits into a chunk stays together, with its JSON path as the heading."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

from agentshell.memory.documents.block import MAX_HEADING_CHARACTERS, Block, MalformedDocument, Position

# Checked before parsing, because a value in memory takes many times its bytes in the text.
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Leaf(NamedTuple):
    """A value without parts, or an empty container, and the keys and indexes that lead to it."""

    keys: tuple[str | int, ...]
    text: str


def blocks(text: str, limit: int) -> Generator[Block]:
    """Splits JSON into lines `key.key[index]: value`, in order.

    A member or an item that fits into `limit` characters is a block; a larger one is split into its parts. Items count
    from 0, as in JSON paths. Raises MalformedDocument for text that is not JSON, has more than a million values, or is
    nested more than 64 deep.
    """
    if sum(map(text.count, ",[{")) > _MAX_VALUES:
        raise MalformedDocument(f"has more than {_MAX_VALUES:,} values: split it")
    try:
        value = json.loads(text, parse_int=str, parse_float=str)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise MalformedDocument(f"is not JSON: {error}") from None
    leaves = list(_leaves(value))
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + len(_line(leaf, 0)) + 1)
    yield from _apart(leaves, ends, 0, len(leaves), 0, limit)


def _apart(
    leaves: Sequence[_Leaf], ends: Sequence[int], start: int, stop: int, depth: int, limit: int
) -> Generator[Block]:
    """Yields the blocks of the container, `depth` keys deep, that the leaves from `start` to `stop` make up."""
    path = leaves[start].keys[:depth]
    said = False
    for first, after in _members(leaves, start, stop, depth):
        if after - first > 1 and ends[after] - ends[first] > limit:
            yield from _apart(leaves, ends, first, after, depth + 1, limit)
            said = False
            continue
        if not said:
            yield _path(path)
            said = True
        key = next(iter(leaves[first].keys[depth:]), None)
        position = Position("item", key) if isinstance(key, int) else None
        yield Block("\n".join(_line(leaf, depth) for leaf in leaves[first:after]), position=position)


def _members(leaves: Sequence[_Leaf], start: int, stop: int, depth: int) -> Generator[tuple[int, int]]:
    """Yields where each member of a container begins and ends."""
    first = start
    for index in range(start + 1, stop + 1):
        if index == stop or leaves[index].keys[depth : depth + 1] != leaves[first].keys[depth : depth + 1]:
            yield first, index
            first = index


def _leaves(root: Any) -> Generator[_Leaf]:
    """Yields the leaves in order. Raises MalformedDocument if they are too deep."""
    parts: list[Iterator[tuple[str | int, Any]]] = [iter([("", root)])]
    keys: list[str | int] = []
    while parts:
        item = next(parts[-1], None)
        if item is None:
            parts.pop()
            keys = keys[:-1]
            continue
        key, value = item
        path = (*keys[1:], key) if keys else ()
        if isinstance(value, dict) and value:
            parts.append(iter(cast("dict[str, Any]", value).items()))
        elif isinstance(value, list) and value:
            parts.append(iter(enumerate(cast("list[Any]", value))))
        else:
            yield _Leaf(path, value if isinstance(value, str) else json.dumps(value))
            continue
        keys.append(key)
        if len(keys) > _MAX_DEPTH:
            raise _too_deep()


def _line(leaf: _Leaf, depth: int) -> str:
    name = _names(leaf.keys[depth:])
    return f"{name.removeprefix('.')}: {leaf.text}" if name else leaf.text


def _path(keys: Sequence[str | int]) -> Block:
    """Returns a path as a heading; only its end if it is too long for one."""
    path = f"${_names(keys)}"
    return Block(path if len(path) <= MAX_HEADING_CHARACTERS else f"…{path[1 - MAX_HEADING_CHARACTERS :]}", level=1)


def _names(keys: Sequence[str | int]) -> str:
    return "".join(_step(key) for key in keys)


def _step(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if _NAME.fullmatch(key) else f"[{json.dumps(key, ensure_ascii=False)}]"


def _too_deep() -> MalformedDocument:
    return MalformedDocument(f"is nested more than {_MAX_DEPTH} deep")
