"""Untrusted JSON Schemas (2020-12): validating against one takes bounded work and fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError

_SHOWN_CHARACTERS = 300


class Schema:
    """A JSON Schema. Raises ValueError if it is invalid, refers to another document, or has an unsupported pattern.

    Patterns match in linear time, by the rules of Rust's `regex`: no backreferences, no lookaround.
    """

    def __init__(self, schema: Any) -> None:
        try:
            self._validator = Draft202012Validator(schema, pattern_options=RegexOptions(), retriever=_refuse)
        except ValidationError as error:
            raise ValueError(_told(error)) from None

    def problems(self, value: Any) -> Iterator[str]:
        """Yields where and how a value violates the schema."""
        return map(_told, self._validator.iter_errors(value))

    def problem(self, value: Any) -> str:
        """Returns the value's first problem; empty if it has none."""
        return next(self.problems(value), "")


def _refuse(uri: str) -> NoReturn:
    raise ValueError("a schema must not refer to anything outside itself")


def _told(error: ValidationError) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
    return f"${path}: {error.message}"[:_SHOWN_CHARACTERS]
