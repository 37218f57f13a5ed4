"""Packs that come as archives: who vouches for them, and what serves while one is bad."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.contract.test_personality import PLAIN, serving

from agentshell.mesh.config import PersonalityConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality import files, signature
from agentshell.personality.archives import Archives
from kfm.error.v1 import error_pb2

KEY = signature.new_key()
TRUSTED = {"trusted_keys": (signature.public_key(KEY),)}


def archive(prompt: str = "From an archive.", version: str = "1.0.0") -> bytes:
    manifest = PLAIN.format(id="chef").replace("1.0.0", version)
    return files.to_archive({"manifest.yaml": manifest.encode(), "prompt.md": prompt.encode()})


def put(place: Path, content: bytes, key: bytes | None = KEY) -> str:
    """Writes an archive, signed with a key if given, and returns its path for the configuration."""
    place.write_bytes(content)
    signed = Path(f"{place}.sig")
    signed.unlink(missing_ok=True)
    if key:
        signed.write_bytes(signature.sign(content, key))
    return str(place)


async def test_a_signed_archive_is_served_as_a_folder_would_be(tmp_path: Path) -> None:
    origin = put(tmp_path / "chef.tar.gz", archive())
    async with serving(tmp_path, archives=(origin,), **TRUSTED) as mesh:
        await mesh.service.start()
        found = await mesh.get("chef")
        assert (found.system_prompt, found.source, found.is_default) == ("From an archive.", "chef.tar.gz", True)
        put(tmp_path / "chef.tar.gz", archive("A newer one."))
        await mesh.reload()
        assert (await mesh.get("chef")).system_prompt == "A newer one."


@pytest.mark.parametrize(
    ("content", "key", "config", "expected"),
    [
        (archive(), None, TRUSTED, "chef.tar.gz: has no signature beside it; make one with `agentshell packs pack"),
        (
            archive(),
            signature.new_key(),
            TRUSTED,
            "chef.tar.gz: its signature is not by any of 'personality.trusted_keys",
        ),
        (archive(), KEY, {}, "chef.tar.gz: its signature is not by any of 'personality.trusted_keys'; sign it again"),
        (archive(), signature.new_key(), {"allow_unsigned": "all"}, "chef.tar.gz: its signature is not by any of"),
        (b"PK", KEY, TRUSTED, "chef.tar.gz: not gzip: "),
        (archive("{{ nobody }}"), KEY, TRUSTED, "chef.tar.gz/prompt.md:1: 'nobody' is undefined; give it a default"),
        (None, None, TRUSTED, "chef.tar.gz: cannot be read: No such file or directory; fix that"),
    ],
)
async def test_what_nobody_vouches_for_or_is_no_pack_is_rejected(
    tmp_path: Path, content: bytes | None, key: bytes | None, config: dict[str, Any], expected: str
) -> None:
    if content is not None:
        put(tmp_path / "chef.tar.gz", content, key)
    async with serving(tmp_path, archives=(str(tmp_path / "chef.tar.gz"),), **config) as mesh:
        await mesh.service.start()
        [failure] = await mesh.failures()
        assert failure.message.startswith(expected)
        assert failure.reason == error_pb2.ERROR_REASON_PACK_INVALID


async def test_an_archive_that_changes_on_disk_is_loaded_with_nobody_asking(tmp_path: Path) -> None:
    place = tmp_path / "chef.tar.gz"
    async with serving(tmp_path, archives=(str(place),), **TRUSTED) as mesh:
        await mesh.service.start()
        async with mesh.watch() as change:
            put(place, archive())
            while (loaded := await change()).HasField("rejected"):  # The archive arrives before its signature.
                continue
            assert loaded.loaded.system_prompt == "From an archive."
            put(place, archive("A newer one."), None)
            rejected = (await change()).rejected
            assert (rejected.metadata["personality_id"], rejected.metadata["source"]) == ("chef", "chef.tar.gz")
            put(place, archive("A newer one."))
            assert (await change()).loaded.system_prompt == "A newer one."


async def test_an_unsigned_archive_is_served_where_that_is_allowed(tmp_path: Path) -> None:
    origin = put(tmp_path / "chef.tar.gz", archive(), None)
    async with serving(tmp_path, archives=(origin,), allow_unsigned="all") as mesh:
        await mesh.service.start()
        assert (await mesh.get("chef")).system_prompt == "From an archive."


async def test_the_last_good_archive_serves_while_the_new_one_is_not_good_and_after_a_restart(tmp_path: Path) -> None:
    place = tmp_path / "chef.tar.gz"
    config = {"archives": (put(place, archive()),), **TRUSTED}
    async with serving(tmp_path, **config) as mesh:
        await mesh.service.start()
        put(place, archive("Tampered."), None)
        await mesh.reload()
        assert (await mesh.get("chef")).system_prompt == "From an archive."
    async with serving(tmp_path, **config) as mesh:
        await mesh.service.start()
        assert (await mesh.get("chef")).system_prompt == "From an archive."
        [failure] = await mesh.failures()
        assert (failure.metadata["personality_id"], failure.metadata["version"]) == ("chef", "1.0.0")
        for copy in (tmp_path / "cache").glob("*.tar.gz"):
            copy.write_bytes(archive("Tampered."))
    async with serving(tmp_path, **config) as mesh:
        await mesh.service.start()
        assert list((await mesh.list()).personalities) == [], "a copy is believed no more than its origin"


@pytest.mark.parametrize("key", ["x", "AAAA", ""])
def test_a_trusted_key_that_is_none_stops_the_start(key: str) -> None:
    with pytest.raises(AgentShellError) as caught:
        Archives(PersonalityConfig(trusted_keys=(key,)), None)
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "personality.trusted_keys"


@dataclass
class Site:
    """Serves files over HTTPS, with a certificate from `authority`."""

    authority: Path
    pages: dict[str, bytes] = field(default_factory=dict[str, bytes])
    address: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        while (await reader.readline()).strip():
            continue
        found = self.pages.get(path)
        status = "200 OK" if found is not None else "404 Not Found"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(found or b'')}\r\nconnection: close\r\n\r\n".encode())
        writer.write(found or b"")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def site(directory: Path) -> AsyncGenerator[Site]:
    key, now = ed25519.Ed25519PrivateKey.generate(), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    authority, private = directory / "authority.pem", directory / "key.pem"
    authority.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    served = Site(authority)
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0, ssl=context)
    served.address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()


async def test_an_archive_comes_by_https_with_its_signature_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path) as pages:
        config = {"archives": (f"{pages.address}/packs/chef.tar.gz",), **TRUSTED}
        async with serving(tmp_path, **config) as mesh:
            await mesh.service.start()
            [failure] = await mesh.failures()
            assert "CERTIFICATE_VERIFY_FAILED" in failure.message
            monkeypatch.setenv("SSL_CERT_FILE", str(pages.authority))
            await mesh.reload()
            [failure] = await mesh.failures()
            assert failure.message.endswith("/packs/chef.tar.gz answers 404; fix that")
            pages.pages["/packs/chef.tar.gz"] = archive()
            await mesh.reload()
            [failure] = await mesh.failures()
            assert failure.message.startswith("127.0.0.1/packs/chef.tar.gz: has no signature beside it")
            pages.pages["/packs/chef.tar.gz.sig"] = signature.sign(archive(), KEY)
            await mesh.reload()
            found = await mesh.get("chef")
            assert (found.system_prompt, found.source) == ("From an archive.", "127.0.0.1/packs/chef.tar.gz")
    async with serving(tmp_path, **config) as mesh:
        await mesh.service.start()
        assert (await mesh.get("chef")).system_prompt == "From an archive.", "nobody is there any more, but its copy"


async def test_archives_come_by_nothing_else(tmp_path: Path) -> None:
    for origin in ("http://127.0.0.1:1/chef.tar.gz", "file:///chef.tar.gz", "https://"):
        async with serving(tmp_path, archives=(origin,), **TRUSTED) as mesh:
            await mesh.service.start()
            assert len(await mesh.failures()) == 1
