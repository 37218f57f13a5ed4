"""The port to a vendor. `tests/contract/test_provider_*.py` define it; every adapter passes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.key import Key
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

Deltas: TypeAlias = list[pb.GenerationDelta]
"""What an answer grows by in one go; never empty."""

Tell: TypeAlias = Callable[[Deltas], None]
"""Takes what an answer grows by, as it comes."""


def tell_nobody(_deltas: Deltas) -> None:
    """Ignores deltas, for when only the whole answer matters."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where a vendor is, and the key for it. An empty model or base URL means the adapter's default.

    A vendor that sends nothing for `silence_seconds` has failed, with PROVIDER_TIMEOUT.
    """

    provider: str
    key: Key
    model: str = ""
    base_url: str = ""
    silence_seconds: float = 120.0


class Adapter(Protocol):
    """A vendor at one endpoint. Never retries a failed call: whether to do so is decided above.

    A request never needs an ability that the adapter lacks. Anything else that it cannot do it refuses by name, with
    FEATURE_UNSUPPORTED, before it sends anything. A vendor's failure has a PROVIDER_* reason, or MODEL_NOT_FOUND.
    Cancelling a call, or closing its stream, ends the request to the vendor. An adapter knows no prices.
    """

    @property
    def default_model(self) -> str:
        """The model that generates if a request names none."""
        ...

    @property
    def abilities(self) -> frozenset[pb.Ability.ValueType]:
        """What it can do beyond answering text with text."""
        ...

    def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields what the answer grows by as it comes and, last, the whole. Raises if the answer ends early.

        Usage that the vendor reports before the end is yielded as a delta at once.
        """
        ...

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Returns one vector per text, in order. An empty model is the vendor's default, dimension 0 the model's."""
        ...

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Returns one verdict per text, in order. An empty model is the vendor's default for this."""
        ...

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns how many tokens the model would read, and whether that is an estimate."""
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table of adapters, and what an entry point of the group `agentshell.providers` must refer to.

    `key_variable`: the usual environment variable of its key; empty: it needs none. `prices`: the name that selects its
    rows of the price table; empty: the provider's name.
    """

    build: Callable[[Access], Adapter]
    key_variable: str = ""
    prices: str = ""


def unsupported(provider: str, feature: str) -> AgentShellError:
    """Returns the error for a request that needs what the provider cannot do."""
    return AgentShellError(
        error_pb2.ERROR_REASON_FEATURE_UNSUPPORTED,
        f"provider {provider} does not support {feature}: leave it out, or use another provider",
        metadata={"feature": feature, "provider": provider},
    )


def no_model(provider: str, model: str) -> AgentShellError:
    """Returns the error for a model that the provider does not have."""
    return AgentShellError(
        error_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        f"provider {provider} has no model {model!r}: leave the model out for its default, or see ListModels",
        metadata={"provider": provider, "model": model},
    )
