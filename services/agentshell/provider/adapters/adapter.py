"""The port to a vendor. `tests/contract/test_provider.py` is its meaning; every adapter passes it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb


class Adapter(Protocol):
    """A vendor. Calls the vendor once, never twice: whether to try again is decided above.

    What it cannot do it refuses with FEATURE_UNSUPPORTED by name, before anything is sent. A vendor's failure is one of
    the PROVIDER_* reasons. Cancelling a call, or closing its stream, ends the request to the vendor.
    """

    @property
    def name(self) -> str:
        """The provider's name, as requests have it."""
        ...

    @property
    def default_model(self) -> str:
        """The model that generates where a request names none."""
        ...

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[pb.GenerationDelta | pb.GenerateResponse]:
        """Yields what the answer grows by and, last, the whole answer. An end without it is an error, and raised."""
        ...

    async def embed(self, texts: Sequence[str], model: str) -> pb.EmbedResponse:
        """Returns a vector a text, in order. An empty model is the vendor's default for this."""
        ...

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns a verdict a text, in order. An empty model is the vendor's default for this."""
        ...

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns how many tokens the model would read, and whether that is an estimate."""
        ...

    def list_models(self) -> list[pb.Model]:
        """Returns the models known here: those of the price table, and the default. Asks nobody."""
        ...

    async def close(self) -> None:
        """Lets go of all connections."""
        ...


def unsupported(provider: str, feature: str) -> AgentShellError:
    """The error for what a request asks and the provider cannot do."""
    return AgentShellError(
        error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED,
        f"provider {provider} does not support {feature}: leave it out, or ask another provider",
        metadata={"feature": feature, "provider": provider},
    )


def no_model(provider: str, model: str) -> AgentShellError:
    """The error for a model that the provider does not have."""
    return AgentShellError(
        error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        f"provider {provider} has no model {model!r}: name none for its default, or ask ListModels",
        metadata={"provider": provider, "model": model},
    )
