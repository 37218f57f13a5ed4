"""Which media types can be read, and by what: the one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from agentshell.memory.documents import docx, html, json_tree, markdown, plain, source_code, table
from agentshell.memory.documents.block import Block, MalformedDocument

Read = Callable[[bytes, int], Iterable[Block]]


class Format(NamedTuple):
    """How a document becomes blocks, given its bytes and a chunk's limit in characters.

    `is_isolated`: in a process of its own, because it may take any amount of time and memory. `has_overlaps`: text on
    both sides of a cut belongs together, as sentences do and rows do not.
    """

    name: str
    read: Read
    is_isolated: bool = False
    has_overlaps: bool = True


def _text(blocks: Callable[[str], Iterable[Block]]) -> Read:
    return lambda content, _limit: blocks(_decoded(content))


def _docx(content: bytes, _limit: int) -> Iterable[Block]:
    return docx.blocks(content)


def _json(content: bytes, limit: int) -> Iterable[Block]:
    return json_tree.blocks(_decoded(content), limit)


def _pdf(content: bytes, _limit: int) -> Iterable[Block]:
    from agentshell.memory.documents import pdf  # Only a process that reads a PDF loads this.

    return pdf.blocks(content)


PLAIN = Format("text", _text(plain.blocks))
MARKDOWN = Format("Markdown", _text(markdown.blocks))
HTML = Format("HTML", _text(html.blocks))
PDF = Format("PDF", _pdf, is_isolated=True)
DOCX = Format("DOCX", _docx)
CSV = Format("CSV", _text(table.blocks), has_overlaps=False)
JSON = Format("JSON", _json, has_overlaps=False)
SOURCE_CODE = Format("source code", _text(source_code.blocks))

MEDIA_TYPES: Mapping[str, Format] = {
    "text/plain": PLAIN,
    "text/markdown": MARKDOWN,
    "text/html": HTML,
    "application/xhtml+xml": HTML,
    "application/pdf": PDF,
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": DOCX,
    "text/csv": CSV,
    "text/tab-separated-values": CSV,
    "application/json": JSON,
    **dict.fromkeys(
        (
            "text/x-source",
            "text/x-python",
            "text/x-c",
            "text/x-c++",
            "text/x-csharp",
            "text/x-go",
            "text/x-java",
            "text/x-kotlin",
            "text/x-protobuf",
            "text/x-rust",
            "text/x-shellscript",
            "text/x-sql",
            "text/x-typescript",
            "text/javascript",
        ),
        SOURCE_CODE,
    ),
}


def media_type(given: str) -> str:
    """Returns a media type in lower case, without `charset=utf-8`."""
    return given.lower().replace(" ", "").removesuffix(";charset=utf-8")


def blocks(of: Format, content: bytes, limit: int) -> Iterator[Block]:
    """Splits a document. The texts can be stored: they have no NUL and no lone surrogate.

    Raises MalformedDocument, and nothing else, whatever the bytes are.
    """
    try:
        for block in of.read(content, limit):
            yield Block(_kept(block.text), block.level, block.position)
    except MalformedDocument:
        raise
    except Exception as error:  # Given untrusted input, parsers raise anything.
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise MalformedDocument(f"cannot be read as {of.name}: {said}") from error


def _decoded(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedDocument(f"is not UTF-8 at byte {error.start}") from None
    if "\0" in text:
        raise MalformedDocument(f"has a NUL at character {text.index(chr(0))}: is it text?")
    return text


def _kept(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
