"""A vendor as configured: its endpoints, with their keys, breakers and slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentshell.mesh.config import EndpointConfig, ProviderConfig, VendorConfig
from agentshell.provider.adapters.adapter import Access, Kind
from agentshell.provider.breaker import Breaker
from agentshell.provider.endpoint import Endpoint
from agentshell.provider.key import Key
from agentshell.provider.slots import Slots
from kfm.provider.v1 import provider_service_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class Vendor:
    """What requests call `provider`. `prices_name` selects its rows of the price table."""

    name: str
    prices_name: str
    endpoints: tuple[Endpoint, ...]

    @property
    def default_model(self) -> str:
        """The model that generates if a request names none."""
        return self.endpoints[0].adapter.default_model

    @property
    def abilities(self) -> frozenset[pb.Ability.ValueType]:
        """What it can do beyond answering text with text."""
        return self.endpoints[0].adapter.abilities


def build(name: str, config: ProviderConfig, kind: Kind, environment: Mapping[str, str]) -> Vendor:
    """Returns the vendor `name` as configured, or with the defaults if it is not. Calls nobody yet."""
    vendor = config.vendors.get(name, VendorConfig())

    def endpoint(label: str, own: EndpointConfig) -> Endpoint:
        base_url = own.base_url or vendor.base_url
        access = Access(
            name, _key(name, own, vendor, kind, environment), vendor.model, base_url, vendor.silence_seconds
        )
        return Endpoint(
            label,
            kind.build(access),
            own.weight,
            Breaker(config.breaker.failures, config.breaker.open_seconds),
            Slots(label, vendor.max_concurrent_calls, vendor.max_waiting_calls),
        )

    endpoints = tuple(endpoint(f"{name}#{number}", own) for number, own in enumerate(_ways(vendor), 1))
    return Vendor(name, kind.prices or name, endpoints)


def keys(name: str, config: ProviderConfig, kind: Kind, environment: Mapping[str, str]) -> list[Key]:
    """Returns the keys that a vendor's endpoints need."""
    vendor = config.vendors.get(name, VendorConfig())
    found = (_key(name, own, vendor, kind, environment) for own in _ways(vendor))
    return [key for key in found if key.place]


def _ways(vendor: VendorConfig) -> tuple[EndpointConfig, ...]:
    return vendor.endpoints or (EndpointConfig(),)


def _key(name: str, own: EndpointConfig, vendor: VendorConfig, kind: Kind, environment: Mapping[str, str]) -> Key:
    """Returns where the key is: where the endpoint says, or else the vendor, or else in the usual variable."""
    for place in (own, vendor):
        if place.api_key_env or place.api_key_file:
            return Key(name, place.api_key_env, place.api_key_file, environment)
    return Key(name, kind.key_variable, None, environment)
