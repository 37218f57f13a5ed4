"""What a tool may ask of the host. Each request is checked against what its pack declares, and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any


class HostError(Exception):
    """The host tried and failed: for example, a server cannot be reached."""


def http_get(url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Gets a web page from a host that the pack declares and the operator allows.

    Returns `status`, `headers` (by lower-case name) and `text`. Redirects are not followed. Raises HostError.
    """
    return _ask("http_get", {"url": url, "headers": dict(headers or {})})


def progress(text: str) -> None:
    """Tells the caller, for people, what the tool is doing."""
    _ask("progress", {"text": text})


def _ask(name: str, arguments: Mapping[str, Any]) -> Any:
    return json.loads(_call(name, json.dumps(arguments)))


def _nobody(_name: str, _arguments: str) -> str:
    raise HostError("the host can only be asked within a call")


_call: Callable[[str, str], str] = _nobody


def answer_with(call: Callable[[str, str], str]) -> None:
    """Makes `call` carry requests to the host."""
    global _call  # An interpreter serves one call.
    _call = call
