"""The parsers of lxml, which tell a target what they read, piece by piece and without a tree."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

_etree: Any = importlib.import_module("lxml.etree")  # It has no types of its own.


class Target(Protocol):
    """What is told of elements and text. Whatever it raises ends the parsing."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        ...

    def end(self, tag: str) -> None:
        """An element ends."""
        ...

    def data(self, data: str) -> None:
        """There is text."""
        ...

    def close(self) -> None:
        """That was all."""
        ...


class Parser(Protocol):
    """Takes markup in pieces, of text or bytes. What is not well-formed raises lxml's errors, or is mended in HTML."""

    def feed(self, data: str | bytes) -> None:
        """Reads on."""
        ...

    def close(self) -> None:
        """Ends."""
        ...


def html(target: Target) -> Parser:
    """Returns a parser of HTML, however malformed."""
    return _etree.HTMLParser(target=target, huge_tree=True)


def xml(target: Target) -> Parser:
    """Returns a parser of XML, which resolves no entity and fetches nothing."""
    return _etree.XMLParser(target=target, resolve_entities=False, no_network=True, load_dtd=False)
