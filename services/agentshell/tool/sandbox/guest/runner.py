"""Runs one function of a pack's tools in an interpreter of its own, which ends with the call.

Its output cannot be trusted, because the code that it runs shares its memory. The host checks all of it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import event_loop
import host

_MAX_MESSAGE_CHARACTERS = 1000


def run(request: str, host_call: Callable[[str, str], str]) -> str:
    """Returns `{"output": ...}` or `{"error": {"kind": ..., "message": ...}}`, as JSON.

    `request` has `files` (sources by path), `module`, `function` and `arguments`.
    """
    random.seed()  # The image was built with the generator already seeded.
    host.answer_with(host_call)
    asked = json.loads(request)
    files: Mapping[str, str] = asked["files"]
    try:
        sys.meta_path.insert(0, _Sources(files))
        function = getattr(importlib.import_module(asked["module"]), asked["function"])
        output = function(**asked["arguments"])
        if inspect.iscoroutine(output):
            output = event_loop.run(output)
        return json.dumps({"output": output}, allow_nan=False, ensure_ascii=False)
    except MemoryError:
        return _error("memory", "it ran out of memory")
    except BaseException as error:  # Whatever the tool raises, even SystemExit, is its answer.
        return _error("raised", _describe(error, files))


def _error(kind: str, message: str) -> str:
    return json.dumps({"error": {"kind": kind, "message": message[:_MAX_MESSAGE_CHARACTERS]}})


def _describe(error: BaseException, files: Mapping[str, str]) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the pack's files: `tools/weather.py` is `tools.weather`."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = {path.removesuffix(".py").replace("/", "."): (path, source) for path, source in files.items()}
        self._packages = {name.rpartition(".")[0] for name in self._files} - {""}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self._files:
            return importlib.machinery.ModuleSpec(fullname, self, origin=self._files[fullname][0])
        if fullname in self._packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leaves it to importlib to make an ordinary one."""

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in self._files:
            path, source = self._files[module.__name__]
            exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - what a sandbox is for
