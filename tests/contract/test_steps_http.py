"""Steps that call an external service, over a real HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from tests.contract.steps import BOUND_SECONDS, request_of, run, user

from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.steps.http import HttpRunner
from kfm.content.v1.content_pb2 import ROLE_TOOL
from kfm.error.v1.error_pb2 import ErrorReason
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import HttpStep, Plan, Step, StepResult, Turn
from kfm.turn.v1.turn_service_pb2 import ForkTurnResponse

MAX_BYTES = 4096
_AT_ONCE = 32
LOOPBACK = ("127.0.0.1", "[::1]")
JSON = {"Content-Type": "application/json"}


@dataclass
class Server:
    """Answers as told, and keeps the requests: (first line, headers, body)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    is_silent: bool = False
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list[Any])
    host: str = ""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.asked.append((first, headers, body))
            if self.is_silent:
                await reader.read(1)
            else:
                own = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
                length = "" if "Transfer-Encoding" in self.headers else f"Content-Length: {len(self.body)}\r\n"
                writer.write(f"HTTP/1.1 {self.status} X\r\n{own}{length}Connection: close\r\n\r\n".encode() + self.body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client has seen enough.
        finally:
            self.hung_up.set()
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().listen() as made:
        yield made


@asynccontextmanager
async def runner(*hosts: str) -> AsyncGenerator[HttpRunner]:
    made = HttpRunner(hosts, MAX_BYTES)
    try:
        yield made
    finally:
        await made.close()


def to(uri: str, method: str = "GET", **more: Any) -> StepRequest:
    return request_of(Step(step_id="T/fetch", http=HttpStep(method=method, uri=uri, **more)))


async def fetch(server: Server, request: StepRequest | None = None, seconds: float = 20.0) -> StepResult:
    async with runner(server.host) as made:
        return await run(made, request or to(f"http://{server.host}/a?b=c"), seconds=seconds)


async def refused(server: Server, request: StepRequest | None = None) -> AgentShellError:
    with pytest.raises(AgentShellError) as caught:
        await fetch(server, request)
    return caught.value


def output(result: StepResult) -> Any:
    [part] = result.output.parts
    return MessageToDict(part.tool_result.output)


async def test_an_answer_is_status_type_and_body_and_the_key_is_the_steps(server: Server) -> None:
    server.headers, server.body, server.status = {**JSON, "Set-Cookie": "a=b"}, b'{"sum": [1, null]}', 201
    result = await fetch(server)

    expected = {"status": 201, "headers": {"content-type": "application/json"}, "body": {"sum": [1, None]}}
    assert (result.output.role, result.provider, output(result)) == (ROLE_TOOL, "127.0.0.1", expected)
    [(first, headers, body)] = server.asked
    assert (first, headers["idempotency-key"], body) == ("GET /a?b=c HTTP/1.1", "T/fetch", b"")


@pytest.mark.parametrize(
    ("content_type", "body", "read"),
    [
        ("text/plain; charset=latin-1", b"caf\xe9", "café"),
        ("text/plain; charset=none-such", b"caf\xc3\xa9", "café"),
        ("application/octet-stream", b"\xff", "\ufffd"),
        ("application/json", b'{"a":', '{"a":'),
        ("application/json", b'{"a": NaN}', '{"a": NaN}'),
        ("application/problem+json", b"[true]", [True]),
        ("application/json", b"[1e999]", "[1e999]"),
        ("application/json", b"[" * 25 + b"]" * 25, "[" * 25 + "]" * 25),
        ("application/json", b"[" * 2000 + b"]" * 2000, "[" * 2000 + "]" * 2000),
    ],
)
async def test_a_body_is_json_where_it_says_so_and_is_so(
    server: Server, content_type: str, body: bytes, read: Any
) -> None:
    server.headers, server.body = {"Content-Type": content_type}, body
    assert output(await fetch(server))["body"] == read


async def test_the_deepest_json_that_is_kept_can_be_read_back_from_the_log(server: Server) -> None:
    server.headers, server.body = JSON, b'{"a":' * 23 + b"{}" + b"}" * 23
    result = await fetch(server)
    turn = Turn(plan=Plan(steps=[Step(result=result)]))
    again = ForkTurnResponse.FromString(ForkTurnResponse(turn=turn).SerializeToString())
    assert output(again.turn.plan.steps[0].result)["body"] == json.loads(server.body)


async def test_a_plan_cannot_change_the_key_or_where_a_request_goes(server: Server) -> None:
    uri = f"http://{server.host}/"
    await fetch(server, to(uri, headers={"IDEMPOTENCY-KEY": "mine", "X-Kind": "test"}))
    assert (server.asked[0][1]["idempotency-key"], server.asked[0][1]["x-kind"]) == ("T/fetch", "test")
    for headers in ({"Host": "elsewhere"}, {"Content-Length": "1"}, {"X-A": "b\r\nX-C: d"}, {"X-A": "é\u2028"}):
        assert (await refused(server, to(uri, headers=headers))).name == "INVALID_REQUEST"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("text", "content_type"), [('{"a": 1}', "application/json"), ("1", "text/plain; charset=utf-8")]
)
async def test_what_a_step_works_on_is_its_body(server: Server, text: str, content_type: str) -> None:
    request = to(f"http://{server.host}/", "POST")
    request.step.input, request.input.parts[0].text.text = "outputs['a'].text", text
    await fetch(server, request)
    request.step.http.body = b"given"
    request.step.http.headers["content-type"] = "text/x"
    await fetch(server, request)
    sent = [(headers["content-type"], body) for _, headers, body in server.asked]
    assert sent == [(content_type, text.encode()), ("text/x", b"given")]


async def test_without_an_input_of_its_own_a_step_sends_nothing(server: Server) -> None:
    request = to(f"http://{server.host}/", "POST")
    request.input.CopyFrom(user("secret"))
    await fetch(server, request)
    assert server.asked[0][2] == b""


@pytest.mark.parametrize("uri", ["http://127.0.0.1/", "http://localhost:{port}/", "http://127.0.0.1:{port}.evil.org/"])
async def test_a_host_that_is_not_listed_is_not_called(server: Server, uri: str) -> None:
    port = server.host.partition(":")[2]
    error = await refused(server, to(uri.format(port=port)))
    assert error.name in ("HOST_NOT_ALLOWED", "INVALID_REQUEST")
    assert server.asked == []


@pytest.mark.parametrize(
    ("host", "uri", "is_allowed"),
    [
        ("localhost", "http://LOCALHOST:80/", True),
        ("localhost:80", "http://localhost/", True),
        ("localhost:443", "http://localhost/", False),
        ("localhost", "http://localhost:1/", False),
        ("[::1]:1", "http://[::1]:1/", True),
    ],
)
async def test_a_host_is_allowed_at_its_schemes_own_port_or_the_one_that_is_listed(
    host: str, uri: str, is_allowed: bool
) -> None:
    async with runner(host, *LOOPBACK) as made:
        with pytest.raises(AgentShellError) as caught:
            await run(made, to(uri))
    assert caught.value.name == ("HTTP_UNAVAILABLE" if is_allowed else "HOST_NOT_ALLOWED")  # Nothing listens there.


async def test_a_name_is_gone_to_at_addresses_that_are_public_or_listed(server: Server) -> None:
    port = server.host.partition(":")[2]
    uri = f"http://localhost:{port}/"
    async with runner(f"localhost:{port}") as made:
        with pytest.raises(AgentShellError) as caught:
            await run(made, to(uri))
    assert (caught.value.name, caught.value.metadata["host"]) == ("HOST_NOT_ALLOWED", "localhost")
    assert server.asked == []
    async with runner(f"localhost:{port}", server.host) as made:
        assert output(await run(made, to(uri)))["status"] == 200


async def test_no_host_is_allowed_unless_an_operator_says_so(server: Server) -> None:
    async with runner() as made:
        with pytest.raises(AgentShellError) as caught:
            await run(made, to(f"http://{server.host}/"))
    assert (caught.value.name, caught.value.metadata["host"]) == ("HOST_NOT_ALLOWED", server.host)
    assert "runtime.http_hosts" in caught.value.message


@pytest.mark.parametrize("uri", ["ftp://127.0.0.1/", "http://ann:secret@127.0.0.1/", "/path", "http://[::1/"])
async def test_what_is_no_plain_http_uri_is_refused(server: Server, uri: str) -> None:
    error = await refused(server, to(uri))
    assert (error.name, "secret" in error.message) == ("INVALID_REQUEST", False)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(301, "HTTP_REFUSED"), (304, "HTTP_REFUSED"), (400, "HTTP_REFUSED"), (404, "HTTP_REFUSED")]
    + [(status, "HTTP_UNAVAILABLE") for status in (408, 425, 429, 500, 503)],
)
async def test_a_status_that_is_no_success_is_the_steps_failure(server: Server, status: int, reason: str) -> None:
    server.status, server.headers = status, {"Location": f"http://{server.host}/elsewhere", "Retry-After": "7"}
    error = await refused(server)
    assert (error.name, error.metadata) == (reason, {"host": "127.0.0.1", "status": str(status)})
    assert error.retry_delay == (timedelta(seconds=7) if reason == "HTTP_UNAVAILABLE" else None)
    assert len(server.asked) == 1


@pytest.mark.parametrize("header", ["", "soon", "-1", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015"])
async def test_a_time_to_wait_that_makes_no_sense_is_none(server: Server, header: str) -> None:
    server.status, server.headers = 503, {"Retry-After": header}
    assert (await refused(server)).retry_delay is None


async def test_an_answer_that_is_too_large_is_read_no_further(server: Server) -> None:
    server.body = b"x" * (MAX_BYTES + 1)
    error = await refused(server)
    assert (error.name, error.metadata["limit_bytes"]) == ("TOO_LARGE", str(MAX_BYTES))
    server.body = b"x" * MAX_BYTES
    assert len(output(await fetch(server))["body"]) == MAX_BYTES


async def test_an_encoding_that_was_not_asked_for_is_refused(server: Server) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    assert (await refused(server)).name == "HTTP_REFUSED"
    assert server.asked[0][1]["accept-encoding"] == "identity"


async def test_a_service_that_cannot_be_reached_may_be_there_later(server: Server) -> None:
    server.headers, server.body = {"Transfer-Encoding": "chunked"}, b"5\r\nab"  # Cut off.
    broken = await refused(server)
    async with Server().listen() as gone:
        pass
    assert [broken.reason, (await refused(gone)).reason] == [ErrorReason.ERROR_REASON_HTTP_UNAVAILABLE] * 2


async def test_the_step_ends_at_its_deadline_and_so_does_the_request(server: Server) -> None:
    server.is_silent = True
    with pytest.raises(TimeoutError):
        await fetch(server, seconds=0.2)
    if server.asked:  # Otherwise time ran out before it got that far.
        await asyncio.wait_for(server.hung_up.wait(), 10)


async def test_as_many_steps_call_at_once_as_there_are(server: Server) -> None:
    server.is_silent = True
    async with runner(server.host) as made, asyncio.TaskGroup() as calls:
        called = [calls.create_task(run(made, to(f"http://{server.host}/"))) for _ in range(_AT_ONCE)]
        async with asyncio.timeout(BOUND_SECONDS):
            while len(server.asked) < _AT_ONCE:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)
        for each in called:
            each.cancel()


async def test_no_proxy_of_the_environment_sees_a_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert output(await fetch(server))["status"] == 200


async def test_one_call_has_no_cookies_of_another(server: Server) -> None:
    server.headers = {"Set-Cookie": "session=ann; Path=/"}
    async with runner(server.host) as made:
        await run(made, to(f"http://{server.host}/"))
        await run(made, to(f"http://{server.host}/"))
    assert ["cookie" in headers for _, headers, _ in server.asked] == [False, False]
