"""TLS on network addresses: real certificates, made here, and a real server."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from tests.certificates import Authority
from tests.contract.serving import refusal

from agentshell.mesh import call, channel, tls
from agentshell.mesh.call import OPERATOR, Principal
from agentshell.mesh.config import ServerConfig, TlsConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.server import Server
from kfm.error.v1 import error_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1.personality_service_pb2_grpc import (
    PersonalityServiceServicer,
    PersonalityServiceStub,
    add_PersonalityServiceServicer_to_server,
)
from xenocomm import Client, XenocommError

WAIT_SECONDS = 10.0
SERVICE = "kfm.personality.v1.PersonalityService"


class Probe(PersonalityServiceServicer):
    """Answers with the caller's tenant."""

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:
        return pb.GetResponse(personality=pb.Personality(personality_id=call.tenant()))


class Place:
    """A server with its own authority; its certificate is for `localhost`."""

    def __init__(self, directory: Path) -> None:
        self.authority, self.stranger = Authority(directory / "ours"), Authority(directory / "others")
        self.certificate_file, self.key_file = self.authority.issue("server", "localhost")
        self.keyring = Keyring(directory / "keys.json", directory / "mesh.key")
        self.key = self.keyring.create("acme", "ann")
        self.socket = f"unix:{directory}/m.sock"
        self.address = ""

    def config(self, **more: Path) -> TlsConfig:
        return TlsConfig(
            certificate_file=self.certificate_file, key_file=self.key_file, ca_file=self.authority.ca_file, **more
        )

    @asynccontextmanager
    async def serve(self, mesh_address: str = "", **more: Path) -> AsyncGenerator[None]:
        config = ServerConfig(address="127.0.0.1:0")
        server = Server(config, mesh_address or self.socket, self.keyring, self.config(**more))
        probe = Probe()  # pyright: ignore[reportAbstractUsage] - no other RPC is called
        server.add(SERVICE, lambda made: add_PersonalityServiceServicer_to_server(probe, made))
        await server.start()
        await server.ready()
        self.address = f"localhost:{server.address.rpartition(':')[2]}"
        try:
            yield
        finally:
            await server.stop(0)

    async def tenant(self, secured: grpc.ChannelCredentials | bool, key: str = "", address: str = "") -> str:
        """Connects as a new SDK client, and returns the tenant that the server saw."""
        async with Client.connect(address or self.address, key or self.key, tls=secured) as client:
            answer = await PersonalityServiceStub(client.channel).Get(pb.GetRequest(), timeout=WAIT_SECONDS)
        return answer.personality.personality_id

    async def refused(self, secured: grpc.ChannelCredentials | bool, address: str = "") -> str:
        with pytest.raises(XenocommError) as caught:
            await self.tenant(secured, address=address)
        assert caught.value.reason == "SERVICE_UNAVAILABLE"
        return caught.value.message


@pytest.fixture
def place() -> Any:
    with tempfile.TemporaryDirectory(prefix="as-") as directory:  # A socket's path must be short.
        yield Place(Path(directory))


def believing(authority: Authority, *own: Path) -> grpc.ChannelCredentials:
    certificate, key = (file.read_bytes() for file in own) if own else (None, None)
    return grpc.ssl_channel_credentials(authority.ca_file.read_bytes(), key, certificate)


async def test_who_believes_the_authority_is_served_and_everybody_else_is_told_why_not(place: Place) -> None:
    async with place.serve():
        ours = believing(place.authority)
        assert await place.tenant(ours) == "acme"
        assert "CERTIFICATE_VERIFY_FAILED" in await place.refused(believing(place.stranger))
        assert "CERTIFICATE_VERIFY_FAILED" in await place.refused(True)
        by_number = place.address.replace("localhost", "127.0.0.1")
        assert "Hostname Verification" in await place.refused(ours, by_number)
        assert "Does it speak TLS?" in await place.refused(False)
        assert await place.tenant(False, address=place.socket) == "acme", "a socket is its owner's alone"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await place.tenant(ours, "ask_no_key")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_new_files_serve_the_next_connection_and_half_of_them_does_not(place: Place) -> None:
    async with place.serve():
        assert await place.tenant(believing(place.authority)) == "acme"
        certificate, key = place.stranger.issue("renewed", "localhost")
        place.certificate_file.write_bytes(certificate.read_bytes())
        assert await place.tenant(believing(place.authority)) == "acme", "the key is that of another certificate yet"
        assert "CERTIFICATE_VERIFY_FAILED" in await place.refused(believing(place.stranger))
        place.key_file.write_bytes(key.read_bytes())
        assert await place.tenant(believing(place.stranger)) == "acme"
        assert "CERTIFICATE_VERIFY_FAILED" in await place.refused(believing(place.authority))
        place.key_file.unlink()
        assert await place.tenant(believing(place.stranger)) == "acme", "what served serves on"


async def test_where_clients_show_certificates_one_without_is_no_client_and_one_with_still_needs_its_key(
    place: Place,
) -> None:
    async with place.serve(client_ca_file=place.authority.ca_file):
        own, others = place.authority.issue("client"), place.stranger.issue("client")
        assert await place.tenant(believing(place.authority, *own)) == "acme"
        assert await place.refused(believing(place.authority))
        assert await place.refused(believing(place.authority, *others))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await place.tenant(believing(place.authority, *own), "ask_no_key")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_processes_of_a_mesh_call_one_another_over_tls_and_nobody_plainly(place: Place) -> None:
    async with place.serve(mesh_address="127.0.0.1:0", client_ca_file=place.authority.ca_file):
        secured = tls.calling(place.config(), place.address)
        async with (
            channel.connect(place.address, place.keyring, secured) as peer,
            channel.connect(place.address.replace("localhost", "127.0.0.1"), place.keyring, secured) as misnamed,
            channel.connect(
                place.address.replace("localhost", "127.0.0.1"), place.keyring, secured, "localhost"
            ) as own,
            channel.connect(place.address, place.keyring) as plain,
        ):
            with call.scope(Principal("globex", "bob"), WAIT_SECONDS):
                for way in (peer, own):
                    answer = await PersonalityServiceStub(way).Get(pb.GetRequest())
                    assert answer.personality.personality_id == "globex"
                for way in (misnamed, plain):
                    error = await refusal(PersonalityServiceStub(way).Get(pb.GetRequest()))
                    assert error.reason == error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
            with call.scope(OPERATOR, WAIT_SECONDS):
                answer = await PersonalityServiceStub(peer).Get(pb.GetRequest())
                assert answer.personality.personality_id == OPERATOR.tenant_id


def _other_key(place: Place) -> TlsConfig:
    return place.config().model_copy(update={"key_file": place.authority.issue("other", "localhost")[1]})


def _no_file(place: Place) -> TlsConfig:
    return place.config().model_copy(update={"certificate_file": place.key_file.parent / "none.pem"})


def _no_certificate(place: Place) -> TlsConfig:
    place.certificate_file.write_text("-----BEGIN CERTIFICATE-----\n")
    return place.config()


def _locked_key(place: Place) -> TlsConfig:
    certificate, key = place.authority.issue("locked", "localhost", password="a")
    return TlsConfig(certificate_file=certificate, key_file=key)


def _odd_key(place: Place) -> TlsConfig:
    certificate, key = place.authority.issue("odd", "localhost", key=ed25519.Ed25519PrivateKey.generate())
    return TlsConfig(certificate_file=certificate, key_file=key)


def _no_clients(place: Place) -> TlsConfig:
    return place.config(client_ca_file=place.key_file)


@pytest.mark.parametrize(
    ("broken", "key", "problem"),
    [
        (_other_key, "tls.key_file", "is not the key of tls.certificate_file"),
        (_no_file, "tls.certificate_file", "cannot be read: No such file or directory"),
        (_no_certificate, "tls.certificate_file", "is not the right kind of PEM, or has a password"),
        (_locked_key, "tls.key_file", "is not the right kind of PEM, or has a password"),
        (_odd_key, "tls.key_file", "is of a kind that gRPC cannot serve with"),
        (_no_clients, "tls.client_ca_file", "is not the right kind of PEM, or has a password"),
    ],
)
async def test_a_process_does_not_start_with_files_that_do_not_go_together(
    place: Place, broken: Callable[[Place], TlsConfig], key: str, problem: str
) -> None:
    server = Server(ServerConfig(address="127.0.0.1:0"), place.socket, place.keyring, broken(place))
    with pytest.raises(AgentShellError) as caught:
        await server.start()
    assert (caught.value.reason, caught.value.metadata["key"]) == (error_pb2.ERROR_REASON_CONFIG_INVALID, key)
    assert problem in caught.value.message
    await server.stop(0)


@pytest.mark.parametrize(
    ("address", "is_exposed"),
    [
        ("127.0.0.1:7700", False),
        ("[::1]:7700", False),
        ("localhost:7700", False),
        ("unix:/run/m.sock", False),
        ("0.0.0.0:7700", True),
        ("[::]:7700", True),
        ("192.0.2.1:7700", True),
        ("mesh.example.com:7700", True),
    ],
)
def test_what_a_network_could_read_is_known_by_its_address(place: Place, address: str, is_exposed: bool) -> None:
    assert tls.is_exposed(TlsConfig(), address) is is_exposed
    assert not tls.is_exposed(place.config(), address)
