"""The parsers of lxml, which report what they read to a target, piece by piece and without building a tree."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

_etree: Any = importlib.import_module("lxml.etree")  # It is untyped.


class Target(Protocol):
    """Receives elements and text. Whatever it raises ends the parsing."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        ...

    def end(self, tag: str) -> None:
        """An element ends."""
        ...

    def data(self, data: str) -> None:
        """Text follows."""
        ...

    def close(self) -> None:
        """The document ends."""
        ...


class Parser(Protocol):
    """Takes markup in pieces, of text or bytes. Malformed XML raises lxml's errors; malformed HTML is repaired."""

    def feed(self, data: str | bytes) -> None:
        """Parses the next piece."""
        ...

    def close(self) -> None:
        """Parses the rest; there are no more pieces."""
        ...


def html(target: Target) -> Parser:
    """Returns a parser for HTML, however malformed."""
    return _etree.HTMLParser(target=target, huge_tree=True)


def xml(target: Target) -> Parser:
    """Returns a parser for XML that resolves no entity and fetches nothing."""
    return _etree.XMLParser(target=target, resolve_entities=False, no_network=True, load_dtd=False)
