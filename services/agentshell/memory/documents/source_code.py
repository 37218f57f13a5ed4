"""Source code of any language that is laid out in lines: headings are its definitions, recognised by how they begin.

Deliberately, there is no parser per language: indentation and a keyword decide. So a definition that is only quoted, in
a string of several lines, is taken for a real one; all that costs is a wrong citation.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from agentshell.memory.documents.block import MAX_HEADING_CHARACTERS, Block
from agentshell.memory.documents.plain import lines

_TAB = 4
# Beyond the third level, indented lines are statements rather than definitions.
_MAX_LEVEL = 3
_MAX_LINE_CHARACTERS = 400  # The part of a line that may define something.
_CLOSING = "})]"
_DEFINITION = re.compile(
    r"(?:(?:export|default|pub(?:\([a-z]+\))?|public|private|protected|internal|static|final|abstract|async|unsafe|"
    r"extern|override|open|sealed|data|declare)\s+){0,6}"
    r"(?P<what>def|class|func|fn|function|interface|struct|enum|trait|impl|type|module|namespace|record|object|message|"
    r"service|CREATE\s+(?:TABLE|VIEW|FUNCTION))\b\s*(?P<rest>[^\s(){:;=][^(){:;=]{0,160})?"
    r"(?P<receiver>\([^()]{0,80}\)\s*\w{1,80})?",
    re.IGNORECASE,
)


def blocks(text: str) -> Generator[Block]:
    """Splits source code at definitions, then at empty lines. Every other line is in a block, unchanged."""
    indents: list[int] = []  # Of the enclosing definitions.
    paragraph: list[str] = []
    for line in lines(text):
        if not line.strip():
            yield from _paragraph(paragraph)
            paragraph = []
            continue
        indent = _indent(line)
        headings: list[Block] = []
        if indents and indent <= indents[-1] and line.lstrip()[0] not in _CLOSING:
            indents = [each for each in indents if each < indent]
            headings.append(Block("", len(indents) + 1))
        if len(indents) < _MAX_LEVEL and (name := _definition(line)):
            indents.append(indent)
            headings.append(Block(name, len(indents)))
        if headings:
            # Comments and decorators right above go with what follows.
            above = _attached(paragraph, indent)
            yield from _paragraph(paragraph[: len(paragraph) - len(above)])
            yield from headings
            paragraph = above
        paragraph.append(line)
    yield from _paragraph(paragraph)


def _paragraph(of_lines: list[str]) -> Generator[Block]:
    if of_lines:
        yield Block("\n".join(of_lines))


def _definition(line: str) -> str:
    """Returns what a line defines; empty if nothing."""
    found = _DEFINITION.match(line.lstrip()[:_MAX_LINE_CHARACTERS])
    if not found or not (found["rest"] or found["receiver"]):
        return ""
    name = " ".join(f"{found['what']} {found['rest'] or ''}{found['receiver'] or ''}".split())
    return name[:MAX_HEADING_CHARACTERS]


def _attached(paragraph: list[str], indent: int) -> list[str]:
    count = 0
    while count < len(paragraph) and _is_attached(paragraph[-1 - count], indent):
        count += 1
    return paragraph[len(paragraph) - count :]


def _is_attached(line: str, indent: int) -> bool:
    return _indent(line) == indent and line.lstrip().startswith(("@", "#", "//", "/*", "*", "--"))


def _indent(line: str) -> int:
    return len(line.expandtabs(_TAB)) - len(line.expandtabs(_TAB).lstrip())
