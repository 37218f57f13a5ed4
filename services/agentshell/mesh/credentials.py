"""Who may call: API keys for clients, short-lived signed tokens inside the mesh.

An API key is `ask_<id>_<secret>`; the keys file holds only a digest of the secret. A mesh token is a JWT, valid for a
minute and signed with the mesh's own secret, that says on whose behalf one service calls another.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path

import jwt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agentshell.mesh import errors
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_TOKEN_SECONDS = 60
_TOKEN_RENEWAL_SECONDS = 30
_TOKENS_KEPT = 1024
_AUDIENCE = "agentshell-mesh"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ApiKey(BaseModel):
    """A key as the keys file stores it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_id: str
    tenant_id: str
    principal_id: str
    secret_sha256: str


_KEYS = TypeAdapter(list[ApiKey])


class Keyring:
    """Checks credentials, and makes API keys and mesh tokens. Rereads the keys file when it changes."""

    def __init__(self, keys_file: Path, mesh_key_file: Path) -> None:
        self._keys_file = keys_file
        self._mesh_key = _read_or_make_secret(mesh_key_file)
        self._keys: dict[str, ApiKey] = {}
        self._stamp: tuple[int, int] | None = None
        self._tokens: dict[Principal, tuple[str, float]] = {}  # Minted here, and until when each is handed out.
        self._verified: dict[str, tuple[Principal, float]] = {}  # Verified, and when each expires.

    def verify(self, authorization: str) -> tuple[Principal, bool]:
        """Returns the principal of the `authorization` metadata, and whether the call comes from inside the mesh.

        Raises CREDENTIAL_INVALID.
        """
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise _invalid(
                "the call has no API key: send metadata 'authorization: Bearer <API key>'; `agentshell up` made a key "
                "in its data directory, `agentshell keys create` makes others"
            )
        if credential.startswith("ask_"):
            return self._verify_api_key(credential), False
        return self._verify_token(credential), True

    def create(self, tenant_id: str, principal_id: str) -> str:
        """Makes an API key, adds it to the keys file, and returns it; it cannot be read again.

        Raises INVALID_REQUEST unless each name is 1 to 64 of `A-Z a-z 0-9 . _ -`: so no key is the shared tenant's.
        """
        for field, name in (("tenant_id", tenant_id), ("principal_id", principal_id)):
            if not _NAME.fullmatch(name):
                raise errors.invalid(field, f"{name!r} is not 1 to 64 letters, digits, '.', '_' or '-'")
        key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
        self._load()
        key = ApiKey(key_id=key_id, tenant_id=tenant_id, principal_id=principal_id, secret_sha256=_sha256(secret))
        _write_private(self._keys_file, _KEYS.dump_json([*self._keys.values(), key], indent=2))
        return f"ask_{key_id}_{secret}"

    def mint(self, principal: Principal) -> str:
        """Returns a mesh token for calls on behalf of `principal`, valid for at least another half a minute."""
        now = time.time()
        token, renewal = self._tokens.get(principal, ("", 0.0))
        if now < renewal:
            return token
        claims = {
            "aud": _AUDIENCE,
            "sub": principal.principal_id,
            "tenant": principal.tenant_id,
            "exp": now + _TOKEN_SECONDS,
        }
        token = jwt.encode(claims, self._mesh_key, algorithm="HS256")
        if len(self._tokens) >= _TOKENS_KEPT:
            self._tokens.clear()
        self._tokens[principal] = (token, now + _TOKEN_RENEWAL_SECONDS)
        return token

    def _verify_api_key(self, credential: str) -> Principal:
        self._load()
        key_id, _, secret = credential.removeprefix("ask_").partition("_")
        key = self._keys.get(key_id)
        if key is None or not hmac.compare_digest(key.secret_sha256, _sha256(secret)):
            raise _invalid(
                "the API key is unknown to this mesh, or revoked: send another, which `agentshell keys create` makes"
            )
        return Principal(key.tenant_id, key.principal_id)

    def _verify_token(self, credential: str) -> Principal:
        principal, expiry = self._verified.get(credential, (None, 0.0))
        if principal is not None and time.time() < expiry:
            return principal
        try:
            claims = jwt.decode(
                credential, self._mesh_key, ["HS256"], audience=_AUDIENCE, options={"require": ["exp", "sub", "tenant"]}
            )
        except jwt.ExpiredSignatureError:  # The clock jumped during the call. The caller's next token is a new one.
            raise AgentShellError(
                error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE, "the mesh token expired on its way; call again"
            ) from None
        except jwt.InvalidTokenError as error:
            raise _invalid(
                f"the credential is neither an API key, which begins with 'ask_', nor a token of this mesh ({error}); "
                "`agentshell keys create` makes an API key"
            ) from None
        principal = Principal(str(claims["tenant"]), str(claims["sub"]))
        if len(self._verified) >= _TOKENS_KEPT:
            self._verified.clear()
        self._verified[credential] = (principal, float(claims["exp"]))
        return principal

    def _load(self) -> None:
        try:
            status = self._keys_file.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp == self._stamp:
            return
        try:
            keys = _KEYS.validate_json(self._keys_file.read_bytes())
        except ValidationError as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"{self._keys_file} is not a list of API keys: {error.errors()[0]['msg']}; fix it or remove it",
            ) from None
        self._keys, self._stamp = {key.key_id: key for key in keys}, stamp


def _invalid(message: str) -> AgentShellError:
    return AgentShellError(error_pb2.ERROR_REASON_CREDENTIAL_INVALID, message)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _read_or_make_secret(path: Path) -> str:
    with contextlib.suppress(FileExistsError):
        _write_new(path, secrets.token_hex(32).encode())
    return path.read_text().strip()


def _write_new(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
    _write(scratch, content)
    try:
        os.link(scratch, path)  # Fails if the file exists: of two processes that start at once, one wins.
    finally:
        scratch.unlink()


def _write_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
    _write(scratch, content)
    scratch.replace(path)


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
