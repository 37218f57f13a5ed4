"""Signatures of archives: detached Ed25519, 64 bytes in a file beside the archive, by a key that is trusted.

OpenSSL makes the same ones: `openssl genpkey -algorithm ed25519`, `openssl pkeyutl -sign -rawin`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

SUFFIX = ".sig"
SIGNATURE_BYTES = 64


def new_key() -> bytes:
    """Returns a new private key, as PEM."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def sign(content: bytes, private_key: bytes) -> bytes:
    """Returns the signature of content by a private key in PEM. Raises ValueError for another kind of key."""
    return _private(private_key).sign(content)


def public_key(private_key: bytes) -> str:
    """Returns the public key as base64, for `personality.trusted_keys`. Raises ValueError."""
    raw = _private(private_key).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def read_public_key(text: str) -> Ed25519PublicKey:
    """Returns the key that `public_key` wrote. Raises ValueError."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("not an Ed25519 public key; write its 32 bytes as base64") from None


def is_by_one_of(keys: Iterable[Ed25519PublicKey], content: bytes, signature: bytes) -> bool:
    """Returns whether one of the keys made this signature of the content."""
    for key in keys:
        try:
            key.verify(signature, content)
        except InvalidSignature:
            continue
        return True
    return False


def _private(pem: bytes) -> Ed25519PrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key; `agentshell packs pack` makes one if the file does not exist")
    return key
