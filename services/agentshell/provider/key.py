"""A vendor's API key: read from the environment or a file at each call, so that it may be replaced while this runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


@dataclass(frozen=True, slots=True)
class Key:
    """Where a provider's key is. Without a variable and a file it needs none, and its value is empty."""

    provider: str
    variable: str = ""
    file: Path | None = None
    # Never shown: it has all keys.
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def place(self) -> str:
        """Where it is, for people; empty: it needs none."""
        return f"file {self.file}" if self.file else f"variable {self.variable}" if self.variable else ""

    def find(self) -> str:
        """Returns the key; empty: there is none."""
        if self.file is None:
            return self.environment.get(self.variable, "").strip()
        try:
            return self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def read(self) -> str:
        """Returns the key. Raises PROVIDER_KEY_INVALID where one is needed and missing."""
        key = self.find()
        if not key and self.place:
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID,
                f"provider {self.provider} has no key: the {self.place} is missing or empty; set it, or ask another",
                metadata={"provider": self.provider, "key": self.place},
            )
        return key
