"""How the interpreter's image is compiled and run: the same for the process that builds it and those that load it."""

from __future__ import annotations

import wasmtime


def build() -> wasmtime.Engine:
    """Returns an engine."""
    return wasmtime.Engine(wasmtime.Config())
