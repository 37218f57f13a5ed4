"""The port to a vendor. `tests/contract/test_provider_*.py` are its meaning; every adapter passes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.key import Key
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

Deltas: TypeAlias = list[pb.GenerationDelta]
"""What an answer has grown by at once; never empty."""

Tell: TypeAlias = Callable[[Deltas], None]
"""Hears what an answer grows by, as it comes."""


def tell_nobody(_deltas: Deltas) -> None:
    """Is told where only the whole answer matters."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where, and as whom, a vendor is asked. An empty model or base URL is the adapter's own.

    A vendor that says nothing for `silence_seconds` has failed, with PROVIDER_TIMEOUT.
    """

    provider: str
    key: Key
    model: str = ""
    base_url: str = ""
    silence_seconds: float = 120.0


class Adapter(Protocol):
    """A vendor at one endpoint. Calls the vendor once, never twice: whether to try again is decided above.

    A request never needs what is not among its abilities; what else it cannot do it refuses with FEATURE_UNSUPPORTED
    by name, before anything is sent. A vendor's failure is one of the PROVIDER_* reasons. Cancelling a call, or closing
    its stream, ends the request to the vendor. It knows no prices.
    """

    @property
    def default_model(self) -> str:
        """The model that generates where a request names none."""
        ...

    @property
    def abilities(self) -> frozenset[pb.Ability.ValueType]:
        """What it can do beyond answering text with text."""
        ...

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields what the answer grows by as it comes and, last, the whole. An end without it is an error, and raised.

        A vendor that says what it has used before its end has it yielded as a delta at once.
        """
        ...

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns a vector a text, in order. An empty model is the vendor's for this, dimension 0 the model's."""
        ...

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns a verdict a text, in order. An empty model is the vendor's default for this."""
        ...

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns how many tokens the model would read, and whether that is an estimate."""
        ...

    async def close(self) -> None:
        """Lets go of all connections."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table of adapters; what an entry point of the group `agentshell.providers` must name.

    `key_variable`: the usual variable of its key; empty: it needs none. `prices`: whose rows of the price table are
    its; empty: those of the provider's name.
    """

    build: Callable[[Access], Adapter]
    key_variable: str = ""
    prices: str = ""


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
