"""Which embedder a namespace should have, and embedders by their recorded names."""

from __future__ import annotations

import grpc.aio

from agentshell.memory import lexical
from agentshell.memory.embedders.embedder import Embedder
from agentshell.memory.embedders.lexical import LexicalEmbedder
from agentshell.memory.embedders.local import LocalEmbedder
from agentshell.memory.embedders.provider import ProviderEmbedder
from agentshell.mesh.config import MemoryConfig, NamespaceConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

LOCAL_PREFIX = "local/"


def rule(config: MemoryConfig, namespace: str) -> NamespaceConfig | None:
    """Returns the first rule for a namespace: one with its name, or with its prefix up to and including the slash."""
    fits = (namespace, namespace[: namespace.index("/") + 1])
    return next((each for each in config.namespaces if each.namespace in fits), None)


class Choice:
    """The embedders of a configuration. Each is created on first use, and kept."""

    def __init__(self, config: MemoryConfig, provider: grpc.aio.Channel | None) -> None:
        self._config = config
        self._provider = provider
        self._made: dict[tuple[str, int], Embedder] = {}

    def wanted(self, namespace: str) -> Embedder:
        """Returns the embedder configured for a namespace. Raises CONFIG_INVALID as `named` does."""
        found = rule(self._config, namespace)
        return self.named(found.embedder, found.dimension) if found else self.named(lexical.NAME, 0)

    def named(self, name: str, dimension: int) -> Embedder:
        """Returns an embedder by its name; `dimension` matters only for a provider's model.

        Raises CONFIG_INVALID for a local model that is not configured or is missing, and for a provider's model if
        there is no Provider service.
        """
        key = (name, 0 if name == lexical.NAME or name.startswith(LOCAL_PREFIX) else dimension)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, name: str, dimension: int) -> Embedder:
        if name == lexical.NAME:
            return LexicalEmbedder()
        if name.startswith(LOCAL_PREFIX):
            directory = self._config.local_models.get(name.removeprefix(LOCAL_PREFIX))
            if directory is None:
                raise _missing(
                    name, "memory.local_models", "name its directory there until its vectors have been replaced"
                )
            return LocalEmbedder(name, directory)
        if self._provider is None:
            raise _missing(name, "memory.namespaces", "there is no Provider service here: use `lexical` or `local/...`")
        return ProviderEmbedder(self._provider, name, dimension)


def _missing(name: str, key: str, fix: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"the embedder {name!r} is not in the configuration's {key}: {fix}",
        metadata={"key": key, "fix": fix},
    )
