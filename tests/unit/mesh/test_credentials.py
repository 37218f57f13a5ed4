"""Who may call."""

import stat
import time
from pathlib import Path

import jwt
import pytest

from agentshell.mesh.call import SHARED_TENANT, Principal
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

ANN = Principal("acme", "ann")


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys.json", tmp_path / "mesh.key")


def test_an_api_key_names_its_tenant_and_principal(keyring: Keyring) -> None:
    key = keyring.create("acme", "ann")
    assert keyring.verify(f"Bearer {key}") == (ANN, False)


def test_a_key_made_by_another_process_is_known_at_once(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring(tmp_path / "keys.json", tmp_path / "mesh.key")
    first = keyring.create("acme", "ann")
    assert other.verify(f"Bearer {first}")[0] == ANN
    second = keyring.create("acme", "bob")
    assert other.verify(f"Bearer {second}")[0] == Principal("acme", "bob")


def test_files_are_for_their_owner_alone_and_hold_no_key(keyring: Keyring, tmp_path: Path) -> None:
    key = keyring.create("acme", "ann")
    for name in ("keys.json", "mesh.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert key.rpartition("_")[2] not in (tmp_path / "keys.json").read_text()


def test_a_mesh_token_carries_on_whose_behalf_a_service_calls(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring(tmp_path / "keys.json", tmp_path / "mesh.key")
    assert other.verify(f"Bearer {keyring.mint(ANN)}") == (ANN, True)


@pytest.mark.parametrize("tenant", [SHARED_TENANT, "", "a/b", "x" * 65])
def test_no_api_key_is_made_for_a_tenant_that_is_ours_or_misnamed(keyring: Keyring, tenant: str) -> None:
    with pytest.raises(AgentShellError) as caught:
        keyring.create(tenant, "ann")
    assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST


def test_what_is_no_credential_of_ours_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    key = keyring.create("acme", "ann")
    claims = {"aud": "agentshell-mesh", "sub": "ann", "tenant": "acme", "exp": time.time() + 60}
    secret = (tmp_path / "mesh.key").read_text()
    forged = [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {key}",
        f"Bearer {key[:-1]}x",
        "Bearer ask_",
        "Bearer ask_unknown_secret",
        f"Bearer {jwt.encode(claims, 'x' * 32, algorithm='HS256')}",
        f"Bearer {jwt.encode(claims, '', algorithm='none')}",
        f"Bearer {jwt.encode(claims | {'exp': time.time() - 1}, 'x' * 32, algorithm='HS256')}",
        f"Bearer {jwt.encode(claims | {'aud': 'other'}, secret, algorithm='HS256')}",
        f"Bearer {jwt.encode({'aud': 'agentshell-mesh', 'sub': 'ann'}, secret, algorithm='HS256')}",
    ]
    for authorization in forged:
        with pytest.raises(AgentShellError) as caught:
            keyring.verify(authorization)
        assert caught.value.reason == error_pb2.ERROR_REASON_CREDENTIAL_INVALID, authorization
        assert secret not in caught.value.message


def test_a_token_of_the_mesh_that_expired_on_its_way_is_to_be_sent_anew(keyring: Keyring, tmp_path: Path) -> None:
    claims = {"aud": "agentshell-mesh", "sub": "ann", "tenant": "acme", "exp": time.time() - 1}
    token = jwt.encode(claims, (tmp_path / "mesh.key").read_text(), algorithm="HS256")
    with pytest.raises(AgentShellError) as caught:
        keyring.verify(f"Bearer {token}")
    assert caught.value.reason == error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE


def test_a_keys_file_that_is_none_is_an_error_that_names_it(keyring: Keyring, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("[{]")
    with pytest.raises(AgentShellError, match=r"keys\.json"):
        keyring.verify("Bearer ask_a_b")
