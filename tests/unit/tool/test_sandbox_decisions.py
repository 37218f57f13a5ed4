"""What the sandbox decides without a process: frames, outcomes, and which host calls a tool may make."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.content import plain
from agentshell.mesh.config import ToolConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.tool import egress
from agentshell.tool.egress import Egress, EgressError
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox import frame, lockdown, outcome
from agentshell.tool.sandbox.ability import Abilities
from agentshell.tool.sandbox.frame import FrameError
from agentshell.tool.sandbox.limits import Budget
from agentshell.tool.sandbox.worker import Worker, WorkerDied


def grant(*declared: str, config: ToolConfig | None = None) -> Grant:
    return Grant(config or ToolConfig(), "acme", "p", "tool", declared)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_a_frame_says_what_was_put_into_it(value: dict[str, Any]) -> None:
    framed = frame.encode(value)

    assert frame.size(framed[: frame.HEADER_BYTES]) == len(framed) - frame.HEADER_BYTES
    assert frame.decode(framed[frame.HEADER_BYTES :]) == value


@settings(max_examples=200)
@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_a_frame_or_is_refused(content: bytes) -> None:
    try:
        assert isinstance(frame.decode(content), dict)
    except FrameError:
        return


def test_a_frame_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError):
        frame.size((frame.MAX_BYTES + 1).to_bytes(frame.HEADER_BYTES, "big"))
    with pytest.raises(FrameError):
        frame.encode({"x": "y" * frame.MAX_BYTES})
    with pytest.raises(FrameError):
        frame.decode(b'{"x":' + b"[" * 100_000)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["said", "failed", "message", "other"]), JSON, max_size=3)
    | JSON.map(lambda value: {"said": json.dumps(value)})
    | JSON.map(lambda value: {"said": json.dumps({"error": value})})
)
def test_whatever_a_worker_says_is_an_output_or_a_typed_error(said: dict[str, Any]) -> None:
    try:
        outcome.read("tool", said)
    except AgentShellError as error:
        assert error.name.startswith("TOOL_")  # noqa: PT017 - both outcomes are right


def test_an_output_is_what_the_tool_answers() -> None:
    assert plain(outcome.read("tool", {"said": '{"output": {"x": [1, null, "y"]}}'})) == {"x": [1, None, "y"]}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"failed": "memory"}, "TOOL_MEMORY_LIMIT"),
        ({"failed": "output"}, "TOOL_OUTPUT_LIMIT"),
        ({"failed": "crashed", "message": "wasm trap"}, "TOOL_CRASHED"),
        ({"said": '{"error": {"kind": "memory", "message": ""}}'}, "TOOL_MEMORY_LIMIT"),
        ({"said": '{"error": {"kind": "raised", "message": "ValueError: x"}}'}, "TOOL_FAILED"),
        ({"said": '{"output": NaN}'}, "TOOL_OUTPUT_INVALID"),
        ({"said": '{"output": ' + "[" * 500 + "]" * 500 + "}"}, "TOOL_OUTPUT_INVALID"),
        ({"said": "[" * 100_000}, "TOOL_OUTPUT_INVALID"),
        ({"said": 3}, "TOOL_OUTPUT_INVALID"),
        ({}, "TOOL_OUTPUT_INVALID"),
    ],
)
def test_each_end_of_a_call_has_its_reason(said: dict[str, Any], name: str) -> None:
    with pytest.raises(AgentShellError) as caught:
        outcome.read("tool", said)

    assert caught.value.name == name


@pytest.mark.parametrize(
    ("number", "name"), [(27, "CPU_LIMIT"), (24, "CPU_LIMIT"), (9, "MEMORY_LIMIT"), (11, "CRASHED")]
)
def test_the_signal_that_ended_a_process_says_why(number: int, name: str) -> None:
    assert outcome.died("tool", number).name == f"TOOL_{name}"


@settings(max_examples=200)
@given(st.text(max_size=12) | st.sampled_from(["progress", "http_get"]), st.text(max_size=40) | JSON.map(json.dumps))
async def test_whatever_a_tool_asks_of_the_host_it_gains_nothing(name: str, arguments: str) -> None:
    told: list[str] = []
    abilities = Abilities(grant(), Budget("tool", 1, 0), Egress(ToolConfig(), {}), told.append)

    try:
        answer = await abilities.answer(name, arguments)
    except AgentShellError as error:
        assert (error.name, name == "progress") == ("TOOL_ABILITY_DENIED", False)  # noqa: PT017 - both outcomes are right
    else:
        assert name == "progress"
        assert answer.keys() <= {"value", "error"}
    with pytest.raises(AgentShellError) as caught:
        await abilities.answer(name, arguments)
    assert caught.value.name == "TOOL_HOST_CALL_LIMIT"


HOSTS = st.sampled_from(
    ["api.example.com"] * 6
    + ["API.example.com.", "api.example.com.evil.org", "evil.org", "127.0.0.1", "[::ffff:7f00:1]", "①"]
)
SLASHES, MARKS = (
    st.sampled_from(["://"] * 6 + [":/", ":\\\\", ":", "://evil.org#", "://evil.org?"]),
    st.text("@/:?#\\ %\t", max_size=3),
)
URLS = st.builds(
    "{}{}{}{}{}{}{}".format,
    st.sampled_from(["http", "https", "https", "HTTPS", "file", "javascript", "ftp", ""]),
    SLASHES,
    st.sampled_from(["", "", "", "", "me@", "me:it@", "api.example.com@", "api.example.com:443\\@"]),
    HOSTS,
    st.sampled_from(["", "", "", ":443", ":80", ":0443", ":8080", ":", ":443@evil.org"]),
    MARKS,
    st.text(max_size=8),
)


@settings(max_examples=250)
@given(URLS | st.text(max_size=30))
def test_whatever_a_url_says_it_leads_to_a_host_that_is_granted_or_nowhere(text: str) -> None:
    config = ToolConfig(http_hosts=("api.example.com", "api.example.com:8080", "127.0.0.1", "evil.org"))
    allowed = {"https://api.example.com", "http://api.example.com", "http://api.example.com:8080"}
    allowed |= {"https://api.example.com:8080"}

    try:
        url = egress.parse(text)
        grant("api.example.com", "api.example.com:8080", config=config).check_host(url)
    except EgressError:
        return
    except AgentShellError as error:
        assert error.name == "HOST_NOT_ALLOWED"  # noqa: PT017 - both outcomes are right
        return

    assert f"{url.scheme}://{url.netloc.decode()}" in allowed
    assert (url.host, url.userinfo) == ("api.example.com", b"")


class Ended:
    """Stands in for a process that has written its output and ended."""

    pid = 0

    def kill(self) -> None:
        """Nothing to kill."""

    async def wait(self) -> int:
        return -9


FRAMES = st.fixed_dictionaries(
    {},
    optional={
        "host": JSON | st.sampled_from(["progress", "http_get", "read_file"]),
        "arguments": JSON | st.just('{"text": "x"}') | st.just('{"url": "http://127.0.0.1:9/", "headers": {}}'),
        "said": JSON,
        "failed": JSON,
    },
).map(frame.encode)


@settings(max_examples=80)
@given(st.lists(FRAMES | st.binary(max_size=12), max_size=6))
async def test_whatever_a_worker_sends_the_call_ends_and_nothing_is_gained(pieces: list[bytes]) -> None:
    said, told = asyncio.StreamReader(), list[str]()
    said.feed_data(b"".join(pieces))
    said.feed_eof()
    ours, its = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    process: Any = Ended()
    worker = Worker(process, writer, said)
    way = Egress(ToolConfig(http_hosts=("127.0.0.1:9",)), {})  # The pack does not declare this host.
    abilities = Abilities(grant(config=way.config), Budget("tool", 3, 0), way, told.append)

    try:
        outcome.read("tool", await worker.call({}, abilities.answer))
    except AgentShellError as error:
        assert error.name.startswith("TOOL_")  # noqa: PT017 - any outcome is right
    except (WorkerDied, FrameError):
        assert worker.spent
    finally:
        writer.close()
        await writer.wait_closed()
        its.close()

    assert way.web._client is None, "nobody went anywhere"  # pyright: ignore[reportPrivateUsage] - the only sign
    assert len(told) <= 3


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_filter_names_only_calls_that_its_machine_has(machine: str) -> None:
    wasm = lockdown.program(machine, lockdown.RUNTIME_CALLS, threads=True, new_code=False)
    native = lockdown.program(machine, lockdown.INTERPRETER_CALLS, threads=False, new_code=True)

    assert (len(wasm) % 8, len(native) % 8) == (0, 0)
    assert len(wasm) // 8 < 4096 > len(native) // 8


def test_a_machine_without_a_filter_is_refused() -> None:
    with pytest.raises(OSError, match="no seccomp filter for riscv64"):
        lockdown.program("riscv64", (), threads=False, new_code=False)
