"""A pack as a value: its manifest, rendered prompt, documents and digest. Pure: made from the files' contents."""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentshell.personality import given_plan, manifest, tool_file, tool_manifest, yaml_file
from agentshell.personality.manifest import BUILT_IN_TOOLS, Manifest, Source
from agentshell.personality.tool_file import ToolFunction
from agentshell.personality.yaml_file import Lines, PackError
from kfm.personality.v1.personality_service_pb2 import HttpOperation
from kfm.turn.v1.turn_pb2 import Plan

MAX_PROMPT_BYTES = 64 * 1024

_MEDIA_TYPES = {".md": "text/markdown", ".txt": "text/plain"}
_MEDIA_TYPE_BY_LOADER = {"markdown": "text/markdown", "text": "text/plain"}
_TEMPLATES = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
_VARIABLE = re.compile(r"(?<!\{)\{\{ *([A-Za-z_][A-Za-z0-9_]*) *\}\}")
_MARK = re.compile(r"\{[{%#]")
_NEWLINE = re.compile(r"\r\n?")
# Names that Jinja2 never takes for a variable, even if one is declared.
_RESERVED = frozenset(("not", "true", "false", "none", "True", "False", "None", "self", "super", "caller", "loop"))


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a pack's knowledge, by its path in the pack."""

    path: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Pack:
    """A well-formed pack."""

    manifest: Manifest
    system_prompt: str
    documents: tuple[Document, ...]
    tools: tuple[ToolFunction, ...]
    """The functions of its own that it exposes."""
    tool_files: Mapping[str, str]
    """Their source files, by path; empty if there are none."""
    operations: tuple[HttpOperation, ...]
    """Those of its tools that are HTTP operations."""
    digest: str
    """Of all files, as `sha256:<hex>`."""
    plan: Plan
    """What its turns do; empty: the shell plans."""
    knowledge_digest: str
    """Of the documents alone; empty if there are none."""
    id_line: int
    """The manifest's line with the id."""

    @property
    def personality_id(self) -> str:
        """The id in the manifest."""
        return self.manifest.id


def parse(files: Mapping[str, bytes]) -> Pack:
    """Returns the pack with these files, by their relative paths. Raises PackError, with file, line and fix."""
    if manifest.FILE not in files:
        raise PackError(manifest.FILE, 0, "no such file; every folder of a packs directory needs one")
    read, lines = manifest.parse(files[manifest.FILE])
    documents = _documents(read, lines, files)
    operations = _operations(read, lines)
    tools, tool_files = _tools(read, lines, files, operations)
    return Pack(
        manifest=read,
        system_prompt=_system_prompt(read, lines, files),
        documents=documents,
        tools=tools,
        tool_files=tool_files,
        operations=operations,
        plan=given_plan.parse(read.plan.steps, lines) if read.plan.steps else Plan(),
        digest=digest(files),
        knowledge_digest=digest({document.path: document.content for document in documents}) if documents else "",
        id_line=lines.find("id"),
    )


def digest(files: Mapping[str, bytes]) -> str:
    """Returns the digest of files: the same for the same relative paths and contents, on every machine."""
    sha256 = hashlib.sha256()
    for path in sorted(files):
        sha256.update(f"{path}\0{len(files[path])}\0".encode())
        sha256.update(files[path])
    return f"sha256:{sha256.hexdigest()}"


def _system_prompt(read: Manifest, lines: Lines, files: Mapping[str, bytes]) -> str:
    file = read.system_prompt.template_file
    if file not in files:
        line = lines.find("system_prompt", "template_file")
        raise PackError(manifest.FILE, line, f"system_prompt.template_file: the pack has no {file}; add it")
    variables = {variable.name: variable.default for variable in read.system_prompt.variables}
    if len(variables) < len(read.system_prompt.variables):
        line = lines.find("system_prompt", "variables")
        raise PackError(manifest.FILE, line, "system_prompt.variables: a name appears twice; remove one")
    prompt = _render(file, yaml_file.decode(file, files[file]), variables).strip()
    if not prompt:
        raise PackError(file, 0, "renders to nothing; say who the personality is")
    return prompt


def _render(file: str, source: str, variables: Mapping[str, str]) -> str:
    prompt = ""
    try:
        for piece in _pieces(_NEWLINE.sub("\n", source), variables):
            prompt += piece
            if len(prompt.encode()) > MAX_PROMPT_BYTES:
                raise PackError(file, 0, f"renders to more than {MAX_PROMPT_BYTES} bytes; shorten it")
    except PackError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise PackError(file, error.lineno, f"not a Jinja2 template: {error.message}; fix the line") from None
    except jinja2.UndefinedError as error:
        problem = f"{error.message}; give it a default in system_prompt.variables"
        raise PackError(file, _template_line(error), problem) from None
    except Exception as error:  # A template can raise anything that Python can.
        raise PackError(file, _template_line(error), f"does not render: {error}; fix the line") from None
    return prompt


def _pieces(source: str, variables: Mapping[str, str]) -> Iterable[str]:
    """Returns what a template renders to. Most have only text and variables, and need not be compiled."""
    parts = _VARIABLE.split(source)  # Text and names in turn.
    plain = all(name in variables and name not in _RESERVED for name in parts[1::2])
    if not plain or any(map(_MARK.search, parts[::2])):
        return _TEMPLATES.from_string(source).generate(variables)
    return (variables[part] if index % 2 else part for index, part in enumerate(parts))


def _template_line(error: Exception) -> int:
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == "<template>"), 0)


def _operations(read: Manifest, lines: Lines) -> tuple[HttpOperation, ...]:
    """Returns the HTTP operations that are exposed. Raises PackError."""
    described = read.tools.openapi
    if described is None or not read.tools.enabled:
        return ()
    if not tool_manifest.names_host(read.abilities.http_hosts, described.host):
        problem = f"tools.openapi.servers: {described.host.netloc!r} is not in abilities.http_hosts; add it there"
        raise PackError(manifest.FILE, lines.find("tools", "openapi", "servers"), problem)
    return tuple(operation for name, operation in described.operations().items() if name in read.tools.exposed_tools)


def _tools(
    read: Manifest, lines: Lines, files: Mapping[str, bytes], operations: Sequence[HttpOperation]
) -> tuple[tuple[ToolFunction, ...], Mapping[str, str]]:
    sources = tool_file.sources(files) if read.tools.enabled else {}
    found = tool_file.find(sources, read.tools.names)
    kinds = {"a built-in tool": BUILT_IN_TOOLS, "a function of the pack": found}
    kinds |= {"an operation of tools.openapi": [operation.tool.name for operation in operations]}
    kinds |= {"a tool of tools.mcp": [name for served in read.tools.mcp for name in served.tools]}
    for name in read.tools.names:
        known = [kind for kind, names in kinds.items() if name in names]
        if len(known) != 1:
            problem = (
                f"is {' and '.join(known)}; rename one"
                if known
                else "is not a function of tools/*.py, an operation of tools.openapi, or a built-in tool, which are "
                + ", ".join(BUILT_IN_TOOLS)
            )
            raise PackError(manifest.FILE, _line_of(name, read, lines), f"tools.exposed_tools: {name!r} {problem}")
    return tuple(found.values()), sources if found else {}


def _line_of(name: str, read: Manifest, lines: Lines) -> int:
    exposed = read.tools.exposed_tools
    return lines.find("tools", "exposed_tools", exposed.index(name)) if name in exposed else lines.find("tools", "mcp")


def _documents(read: Manifest, lines: Lines, files: Mapping[str, bytes]) -> tuple[Document, ...]:
    if not read.knowledge.enabled:
        return ()
    documents: dict[str, Document] = {}
    for index, source in enumerate(read.knowledge.sources):
        paths = _paths(source, files)
        if not paths:
            line = lines.find("knowledge", "sources", index, "path")
            problem = f"the pack has no {source.type} {source.path!r} with anything in it; add it, or remove the source"
            raise PackError(manifest.FILE, line, f"knowledge.sources.{index}.path: {problem}")
        for path in paths:
            yaml_file.decode(path, files[path])
            documents[path] = Document(path, _media_type(source, path), files[path])
    return tuple(documents[path] for path in sorted(documents))


def _paths(source: Source, files: Mapping[str, bytes]) -> list[str]:
    if source.type == "file":
        return [source.path] if source.path in files else []
    within = "" if source.path == "." else f"{source.path}/"
    return [path for path in files if path.startswith(within)]


def _media_type(source: Source, path: str) -> str:
    if source.loader != "auto":
        return _MEDIA_TYPE_BY_LOADER[source.loader]
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in _MEDIA_TYPES:
        raise PackError(path, 0, "knowledge must be .md or .txt; rename or remove it, or give its source a loader")
    return _MEDIA_TYPES[suffix]
