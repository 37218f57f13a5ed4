"""Certificates for tests, made on the spot: an authority, and the certificates it issues."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_BEGIN, _END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


class Authority:
    """A certificate authority; `ca_file` is its own certificate. It issues certificates for hosts and addresses."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.pem"
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(f"the authority of {directory.name}")
        made = self._signed(self._name, self._key, _END, x509.BasicConstraints(ca=True, path_length=None))
        self.ca_file.write_bytes(made)

    def issue(
        self, file: str, *hosts: str, end: datetime = _END, password: str = "", key: _Key | None = None
    ) -> tuple[Path, Path]:
        """Writes a certificate, valid until `end`, and its key, over earlier ones, and returns their paths."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        certificate_file, key_file = self._directory / f"{file}.pem", self._directory / f"{file}.key"
        certificate_file.write_bytes(self._signed(_named(file), key, end, names))
        locked = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        return certificate_file, key_file

    def _signed(self, name: x509.Name, key: _Key, end: datetime, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(self._name, name, key.public_key(), x509.random_serial_number(), _BEGIN, end)
        return (
            builder.add_extension(extension, critical=False).sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
