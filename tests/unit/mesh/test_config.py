"""Configuration: defaults, file, variables; any fault in it prevents the start."""

from pathlib import Path

import pytest

from agentshell.mesh import config
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_MISSING, _DIRECTORY = "(missing)", "(directory)"


def test_variables_come_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agentshell.toml"
    file.write_text("[runtime]\nmax_steps = 3\nmax_attempts = 2\n[peers]\nmemory = '127.0.0.1:9'\n")
    loaded = config.load(file, {"AGENTSHELL_RUNTIME__MAX_STEPS": "7", "AGENTSHELL_TEST_X": "1", "HOME": "/"})
    assert (loaded.runtime.max_steps, loaded.runtime.max_attempts, loaded.runtime.max_turn_seconds) == (7, 2, 3600.0)
    assert loaded.peers == {"memory": "127.0.0.1:9"}


def test_overrides_of_the_command_line_come_last(tmp_path: Path) -> None:
    given = {"data_dir": str(tmp_path), "server": {"address": "127.0.0.1:0"}}
    loaded = config.load(None, {"AGENTSHELL_SERVER__ADDRESS": "127.0.0.1:1"}, given)
    assert (loaded.data_dir, loaded.server.address) == (tmp_path, "127.0.0.1:0")


def test_a_list_in_a_variable_is_toml() -> None:
    loaded = config.load(None, {"AGENTSHELL_PERSONALITY__DIRECTORIES": "['/a', '/b']"})
    assert loaded.personality.directories == (Path("/a"), Path("/b"))


@pytest.mark.parametrize(
    ("environment", "key", "value"),
    [
        ({"AGENTSHELL_RUNTIME__MAX_STEPS": "many"}, "runtime.max_steps", "many"),
        ({"AGENTSHELL_RUNTIME__MAX_STEPS": "0"}, "runtime.max_steps", "0"),
        ({"AGENTSHELL_RUNTIME__MAX_STEP": "3"}, "runtime.max_step", "3"),
        ({"AGENTSHELL_COLOUR": "blue"}, "colour", "blue"),
        # gRPC would take this for port 443.
        ({"AGENTSHELL_SERVER__ADDRESS": "127.0.0.1"}, "server.address", "127.0.0.1"),
        ({"AGENTSHELL_SERVER__HTTP_ADDRESS": "127.0.0.1:99999"}, "server.http_address", "127.0.0.1:99999"),
    ],
)
def test_what_is_unknown_or_malformed_is_named_with_its_value_and_the_fix(
    environment: dict[str, str], key: str, value: str
) -> None:
    with pytest.raises(AgentShellError) as caught:
        config.load(None, environment)
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert (caught.value.metadata["key"], caught.value.metadata["value"]) == (key, value)
    assert next(iter(environment)) in caught.value.message
    assert caught.value.metadata["fix"] in caught.value.message


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        (
            "{'agent.turn' = {partitions = 2}}",
            "'agent.turn'; the topics are agent.turns, agent.outputs, agent.steps",
        ),
        (
            "{'agent.outputs' = {partitions = 2}}",
            "'agent.outputs' has as many partitions as 'agent.turns', 8: leave its",
        ),
    ],
)
def test_what_cannot_be_said_of_a_topic_is_refused_with_what_can(topics: str, said: str) -> None:
    with pytest.raises(AgentShellError) as caught:
        config.load(None, {"AGENTSHELL_LOG__TOPICS": topics})
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "log.topics"
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"CERTIFICATE_FILE": "a"}, "certificate_file goes with key_file, which is not set"),
        ({"KEY_FILE": "a"}, "key_file goes with certificate_file, which is not set"),
        ({"CLIENT_CA_FILE": "a"}, "client_ca_file goes with certificate_file and key_file, which are not set"),
    ],
)
def test_half_of_what_tls_needs_is_refused_by_the_name_of_the_other_half(given: dict[str, str], said: str) -> None:
    with pytest.raises(AgentShellError) as caught:
        config.load(None, {f"AGENTSHELL_TLS__{key}": value for key, value in given.items()})
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "tls"
    assert said in caught.value.message


@pytest.mark.parametrize("server", ["personalities = ['a']", "personalities = ['a'], command = 'x', url = 'http://y'"])
def test_a_server_of_tools_is_a_program_or_an_address(server: str) -> None:
    with pytest.raises(AgentShellError, match="give it a command or a url, and not both") as caught:
        config.load(None, {"AGENTSHELL_TOOL__MCP_SERVERS": f"{{files = {{{server}}}}}"})
    assert caught.value.metadata["key"] == "tool.mcp_servers.files"


@pytest.mark.parametrize("text", ["[runtime", "a = \xff", _MISSING, _DIRECTORY])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.toml"
    if text == _DIRECTORY:
        file.mkdir()
    elif text != _MISSING:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(AgentShellError, match=r"file '.*broken\.toml': ") as caught:
        config.load(file, {})
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID


@pytest.mark.parametrize("variable", ["AGENTSHELL_PEERS", "AGENTSHELL_RUNTIME"])
def test_a_malformed_table_in_a_variable_is_refused(variable: str) -> None:
    with pytest.raises(AgentShellError, match=variable):
        config.load(None, {variable: "{not toml"})
