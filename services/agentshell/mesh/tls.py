"""TLS: what a process presents at its network addresses, and whom it trusts at those of others.

Sockets (`unix:PATH`) are plaintext: only their owner can open them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agentshell.mesh.config import TlsConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_log = structlog.get_logger("agentshell.tls")

_T = TypeVar("_T")


class Certificate(NamedTuple):
    """The names that a certificate is for, and when it expires."""

    names: list[str]
    end_time: datetime


def serving(config: TlsConfig, address: str) -> grpc.ServerCredentials | None:
    """Returns the credentials to serve an address with; None: plaintext. Raises CONFIG_INVALID.

    Files that change are reread at the next connection; while they do not match, the previous ones stay in use.
    """
    if config.certificate_file is None or config.key_file is None or _is_socket(address):
        return None
    files = _Files(config.certificate_file, config.key_file, config.client_ca_file)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        cast("Callable[[], grpc.ServerCertificateConfiguration]", files.news),  # The stubs omit None.
        require_client_authentication=config.client_ca_file is not None,
    )


def calling(config: TlsConfig, address: str) -> grpc.ChannelCredentials | None:
    """Returns the credentials to call an address with; None: plaintext. Raises CONFIG_INVALID.

    A process that has a certificate or an authority calls no host in plaintext, and presents its certificate when
    asked. The files are read once: the credentials do not follow later changes.
    """
    if _is_socket(address) or not (config.certificate_file or config.ca_file):
        return None
    roots = _authorities(config.ca_file, "tls.ca_file")
    if config.certificate_file is None or config.key_file is None:
        return grpc.ssl_channel_credentials(roots)
    certificate, _ = _certificate(config.certificate_file)
    return grpc.ssl_channel_credentials(roots, _key(config.key_file, certificate), certificate)


def is_exposed(config: TlsConfig, address: str) -> bool:
    """Returns whether traffic to an address of this process can be read on a network."""
    if config.certificate_file is not None or _is_socket(address):
        return False
    host = address.rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def own(config: TlsConfig) -> Certificate | None:
    """Returns the certificate of this process; None: it has none. Raises CONFIG_INVALID."""
    if config.certificate_file is None:
        return None
    _, found = _certificate(config.certificate_file)
    names: list[str] = []
    for extension in found.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names += extension.value.get_values_for_type(x509.DNSName)
            names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    return Certificate(names, found.not_valid_after_utc)


def own_name(config: TlsConfig) -> str:
    """Returns a name that the certificate of this process is for; empty: there is none. Raises CONFIG_INVALID."""
    found = own(config)
    return found.names[0].replace("*", "any", 1) if found and found.names else ""


class _Files:
    """What a process serves with, reread as its files change."""

    def __init__(self, certificate: Path, key: Path, clients: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._clients = clients
        self._stamp: list[tuple[int, int, int]] = []

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Returns what to serve with. Raises CONFIG_INVALID if the files are missing or do not match."""
        self._stamp = self._look()
        certificate, _ = _certificate(self._certificate)
        pair = (_key(self._key, certificate), certificate)
        return grpc.ssl_server_certificate_configuration([pair], _authorities(self._clients, "tls.client_ca_file"))

    def news(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what to serve with from now on; None: no change. grpc asks at each connection, in its own thread."""
        try:
            if self._look() == self._stamp:
                return None
            read = self.read()
        except (AgentShellError, OSError) as error:
            _log.warning("the previous certificate stays in use", error=str(error))
            return None
        _log.info("a new certificate is in use", file=str(self._certificate))
        return read

    def _look(self) -> list[tuple[int, int, int]]:
        paths = (self._certificate, self._key, self._clients)
        found = [path.stat() for path in paths if path is not None and path.exists()]
        return [(status.st_mtime_ns, status.st_ino, status.st_size) for status in found]


def _certificate(path: Path) -> tuple[bytes, x509.Certificate]:
    return _parsed(path, "tls.certificate_file", x509.load_pem_x509_certificate)


def _key(path: Path, certificate: bytes) -> bytes:
    content, key = _parsed(path, "tls.key_file", lambda pem: load_pem_private_key(pem, None))
    if key.public_key() != x509.load_pem_x509_certificate(certificate).public_key():
        raise _invalid("tls.key_file", path, "is not the key of tls.certificate_file")
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise _invalid("tls.key_file", path, "is of a kind that gRPC cannot serve with: make an RSA or P-256 key")
    return content


def _authorities(path: Path | None, key: str) -> bytes | None:
    return None if path is None else _parsed(path, key, x509.load_pem_x509_certificates)[0]


def _parsed(path: Path, key: str, parse: Callable[[bytes], _T]) -> tuple[bytes, _T]:
    """Returns a file's content, raw and parsed."""
    try:
        content = path.read_bytes()
        return content, parse(content)
    except OSError as error:
        raise _invalid(key, path, f"cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # A key with a password raises TypeError.
        raise _invalid(key, path, "is not the right kind of PEM, or has a password") from None


def _is_socket(address: str) -> bool:
    return address.startswith("unix:")


def _invalid(key: str, path: Path, problem: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"configuration key {key!r} = {str(path)!r}: {problem}",
        metadata={"key": key, "value": str(path), "fix": "name another file, or fix it"},
    )
