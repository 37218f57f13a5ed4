"""How the Iggy driver parses its address. Its exchanges with a server are in the contract suite."""

from __future__ import annotations

import pytest

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

pytest.importorskip("apache_iggy", reason="the SDK of Iggy is not installed")
from agentshell.log.iggy_wire import stream_of, tcp_config


def test_an_address_has_a_user_and_a_password_or_a_token() -> None:
    by_user = tcp_config("iggy://ann:p%40ss@broker:8090")
    assert (by_user.server_address, by_user.auto_login.username, by_user.tls_enabled) == ("broker:8090", "ann", False)
    by_token = tcp_config("iggy+tcp://secret@broker:8090?tls=true&tls_domain=example.org&tls_ca_file=ca.pem")
    assert (by_token.auto_login.username, by_token.auto_login.enabled) == (None, True)
    assert (by_token.tls_enabled, by_token.tls_domain, by_token.tls_ca_file) == (True, "example.org", "ca.pem")
    assert not by_token.reconnection.enabled


def test_an_address_may_name_the_stream() -> None:
    assert stream_of("iggy://ann:p%40ss@broker:8090?tls=true") == "agentshell"
    assert stream_of("iggy://ann:p%40ss@broker:8090/of%20ours?tls=true") == "of ours"


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:secret@broker:8090",
        "iggy://ann:secret@broker",
        "iggy://broker:8090",
        "iggy://ann:secret@broker:port",
        "iggy://ann:secret@broker:8090?tsl=true",
        "iggy://ann:secret@broker:8090?tls=yes",
        "iggy://ann:secret@broker:8090?tls_ca_file=ca.pem",
    ],
)
def test_a_wrong_address_is_refused_without_repeating_its_secret(url: str) -> None:
    with pytest.raises(AgentShellError) as raised:
        tcp_config(url)
    assert raised.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert "secret" not in str(raised.value)
