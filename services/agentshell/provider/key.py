"""A vendor's API key: read from the environment or a file at each call, so that it can be replaced at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


@dataclass(frozen=True, slots=True)
class Key:
    """Where to find a provider's key. With neither a variable nor a file it needs none, and the key is empty."""

    provider: str
    variable: str = ""
    file: Path | None = None
    # Never shown: it holds every key.
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def place(self) -> str:
        """Where the key is, for people to read; empty: none is needed."""
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
        """Returns the key. Raises PROVIDER_KEY_INVALID if one is needed but missing."""
        key = self.find()
        if not key and self.place:
            raise AgentShellError(
                error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID,
                f"provider {self.provider} has no key: the {self.place} is missing or empty; set it, or use another",
                metadata={"provider": self.provider, "key": self.place},
            )
        return key
