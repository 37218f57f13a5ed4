"""Tools that reach outside: pages, HTTP operations, Model Context Protocol servers, and other personalities.

A tool may reach what its pack declares, the operator allows and the tenant's policy permits.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import uvicorn
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Value
from mcp.server.mcpserver import MCPServer
from tests.conftest import create_database
from tests.contract.http_site import http_site
from tests.contract.test_tool import BOUND_SECONDS, Mesh, serve

from agentshell.content import plain
from agentshell.db.database import Database
from agentshell.mesh.config import McpServerConfig, TenantPolicyConfig, ToolConfig, ToolSecretConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.mcp import connection
from agentshell.tool.mcp.servers import Servers
from agentshell.tool.mcp.tool import McpTool
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.personality.v1.personality_service_pb2 import ReloadRequest
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

PROGRAM = McpServerConfig(
    personalities=("web",),
    command=sys.executable,
    args=("-I", str(Path(__file__).with_name("mcp_program.py"))),
    env={"TRACKER": "here"},
    pass_env=("PATH", "NO_SUCH_VARIABLE"),
)
NAME = "localhost:9"  # At an address that is not public.
TENANTS = ("acme", "narrow", "shut")
WEB: dict[str, Any] = {"personality_id": "web"}
MORE = """
abilities:
  http_hosts: ["{host}", "{name}"]
tools:
  enabled: true
  exposed_tools: [http_get, ask_agent, read_issue, write_issue]
  openapi:
    servers:
      - url: http://{host}/v1
    paths:
      /issues/{{id}}:
        parameters:
          - {{name: id, in: path, schema: {{type: string, maxLength: 64}}}}
        get:
          operationId: read_issue
          summary: Reads an issue.
          x-secret: tracker
          x-max-response-bytes: 1000
          parameters:
            - {{name: label, in: query, schema: {{type: array, items: {{type: string}}}}}}
            - {{name: x-flavour, in: header, description: Of the answer.}}
        post:
          operationId: write_issue
          description: Writes an issue.
          requestBody:
            required: true
            content:
              application/json:
                schema: {{$ref: "#/components/schemas/Issue"}}
    components:
      schemas:
        Issue: {{type: object, properties: {{title: {{type: string, minLength: 1}}}}, required: [title]}}
  mcp:
    - server: program
      tools: [add, lie, variables, cancelled, fail, flood, endless, hang, die, deaf, pid, broken, absent]
    - server: elsewhere
      tools: [greet]
"""


class Site(BaseHTTPRequestHandler):
    """A site that echoes its requests."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0"))).decode()
        named = ("authorization", "x-flavour", "idempotency-key", "cookie")
        headers = {name: self.headers[name] for name in named if name in self.headers}
        asked = {"method": self.command, "path": self.path, "headers": headers, "body": body}
        self.seen.append(asked)
        answer = {"/v1/issues/large": b"x" * 2000, "/page": "Vögel\n".encode() * 100}.get(self.path)
        self.send_response({"/away": 302}.get(self.path, 200))
        self.send_header("Location", "http://169.254.169.254/")
        types = {"/page": "text/plain; charset=utf-8", "/image": "image/png"}
        self.send_header("Content-Type", types.get(self.path, "application/json"))
        answer = answer or json.dumps(asked).encode()
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing."""


@pytest.fixture(scope="module")
def site() -> Generator[str]:
    """A site on this machine; yields its host."""
    Site.seen = []
    with http_site(Site) as host:
        yield host


@pytest.fixture(scope="module")
async def mesh(postgres_url: str, tmp_path_factory: pytest.TempPathFactory, site: str) -> AsyncGenerator[Mesh]:
    """The services, with a pack whose tools reach outside."""
    config = ToolConfig(
        max_seconds=20,
        http_hosts=(site, NAME),
        secrets=(ToolSecretConfig(name="tracker", host=site, personalities=("web",), value_env="PATH"),),
        mcp_servers={"program": PROGRAM, "elsewhere": McpServerConfig(personalities=("other",), command="/bin/false")},
        max_mcp_connections=2,
        tenant_policies={
            "narrow": TenantPolicyConfig(tools=("http_get", "read_issue"), http_hosts=("example.com",)),
            "poor": TenantPolicyConfig(secrets=()),
            "shut": TenantPolicyConfig(personalities=()),
        },
    )
    packs = tmp_path_factory.mktemp("packs")
    database = await Database.open(await create_database(postgres_url), 4)
    async with serve(database, packs, config) as mesh:
        mesh.write_pack("web", MORE.format(host=site, name=NAME))
        reload = PersonalityServiceStub(mesh.outside).Reload
        answer = await reload(ReloadRequest(), metadata=mesh.operator(), timeout=BOUND_SECONDS)
        assert not answer.failures, answer.failures
        yield mesh
    await database.close()


def test_what_is_listed_is_what_pack_operator_and_policy_leave(names: dict[str, list[str]]) -> None:
    servers = ["add", "cancelled", "deaf", "die", "endless", "fail", "flood", "hang", "lie", "pid", "variables"]
    own = ["ask_agent", "http_get", "read_issue", "write_issue"]

    assert names == {"acme": sorted(own + servers), "narrow": ["http_get", "read_issue"], "shut": own}


@pytest.fixture
async def names(mesh: Mesh) -> dict[str, list[str]]:
    """The names of each tenant's tools."""
    return {tenant: [tool.name for tool in (await mesh.list("web", tenant=tenant)).tools] for tenant in TENANTS}


# --- pages


async def test_a_page_is_text_from_outside_that_is_cut_where_it_is_long(mesh: Mesh, site: str) -> None:
    found = await mesh.result("http_get", {"url": f"http://{site}/page", "max_characters": 5}, **WEB)

    assert found == {
        "status": 200.0,
        "location": "http://169.254.169.254/",
        "content_type": "text/plain; charset=utf-8",
        "untrusted_text": "Vögel",
        "is_cut": True,
    }


async def test_a_redirect_is_not_followed_and_no_secret_goes_along(mesh: Mesh, site: str) -> None:
    Site.seen.clear()
    found = await mesh.result("http_get", {"url": f"http://{site}/away"}, "away", **WEB)

    assert (found["status"], found["location"]) == (302, "http://169.254.169.254/")
    assert [(asked["path"], asked["headers"]) for asked in Site.seen] == [("/away", {})]


@pytest.mark.parametrize(
    ("url", "tenant", "expected"),
    [
        ("http://{name}/page", "acme", ("HOST_NOT_ALLOWED", "operator")),
        ("http://169.254.169.254/", "acme", ("HOST_NOT_ALLOWED", "pack")),
        ("http://[::ffff:127.0.0.1]/", "acme", ("HOST_NOT_ALLOWED", "pack")),
        ("http://{host}/page", "narrow", ("HOST_NOT_ALLOWED", "tenant")),
        ("http://{host}/page", "shut", ("TOOL_ABILITY_DENIED", "tenant")),
        ("file:///etc/passwd", "acme", ("TOOL_ARGUMENTS_INVALID", None)),
        ("http://me@{host}/", "acme", ("TOOL_ARGUMENTS_INVALID", None)),
        ("http://{host}/image", "acme", ("TOOL_ARGUMENTS_INVALID", None)),
    ],
)
async def test_a_page_that_may_not_be_gone_to_is_said_to_the_model(
    mesh: Mesh, site: str, url: str, tenant: str, expected: tuple[str, str | None]
) -> None:
    given = {"url": url.format(host=site, name=NAME)}

    reason, _, metadata = await mesh.failure("http_get", given, f"{url} {tenant}", tenant=tenant, **WEB)

    assert (reason.removeprefix("ERROR_REASON_"), metadata.get("refused_by")) == expected


# --- HTTP operations


async def test_an_operation_is_sent_with_its_arguments_in_their_places_and_its_secret(mesh: Mesh, site: str) -> None:
    Site.seen.clear()
    given = {"id": "a/../b?c", "label": ["x y", "z&"], "x-flavour": "sweet"}

    found = await mesh.result("read_issue", given, "read", **WEB)

    (asked,) = Site.seen
    assert (found["status"], found["content_type"], found["body"]) == (200, "application/json", asked)
    assert asked == {
        "method": "GET",
        "path": "/v1/issues/a%2F..%2Fb%3Fc?label=x+y&label=z%26",
        "headers": {"authorization": os.environ["PATH"], "x-flavour": "sweet"},
        "body": "",
    }


async def test_an_operation_that_writes_does_so_once_under_its_key(mesh: Mesh) -> None:
    Site.seen.clear()
    call = ("write_issue", {"id": "7", "body": {"title": "Soup"}}, "write")

    first = await mesh.result(*call, **WEB)

    assert await mesh.result(*call, **WEB) == first
    (asked,) = Site.seen
    assert (asked["method"], json.loads(asked["body"])) == ("POST", {"title": "Soup"})
    assert asked["headers"].keys() == {"idempotency-key"}


@pytest.mark.parametrize(
    ("tool", "given", "tenant", "reason"),
    [
        ("read_issue", {}, "acme", "TOOL_ARGUMENTS_INVALID"),
        ("read_issue", {"id": ".."}, "acme", "TOOL_ARGUMENTS_INVALID"),
        ("read_issue", {"id": "7", "x-flavour": "a\r\nHost: b"}, "acme", "TOOL_ARGUMENTS_INVALID"),
        ("read_issue", {"id": "7", "label": "x"}, "acme", "TOOL_ARGUMENTS_INVALID"),
        ("write_issue", {"id": "7", "body": {"title": ""}}, "acme", "TOOL_ARGUMENTS_INVALID"),
        ("read_issue", {"id": "large"}, "acme", "TOO_LARGE"),
        ("read_issue", {"id": "7"}, "narrow", "HOST_NOT_ALLOWED"),
        ("read_issue", {"id": "7"}, "poor", "TOOL_ABILITY_DENIED"),
        ("read_issue", {"id": "7"}, "shut", "TOOL_ABILITY_DENIED"),
        ("write_issue", {"id": "7", "body": {"title": "x"}}, "narrow", "TOOL_ABILITY_DENIED"),
    ],
)
async def test_an_operation_that_cannot_be_is_said_to_the_model(
    mesh: Mesh, tool: str, given: dict[str, Any], tenant: str, reason: str
) -> None:
    failure = await mesh.failure(tool, given, f"{tool} {given} {tenant}", tenant=tenant, **WEB)

    assert failure[0] == f"ERROR_REASON_{reason}", failure[1]


# --- Model Context Protocol servers


async def test_a_servers_tool_is_called_and_its_answer_checked(mesh: Mesh) -> None:
    tools = {tool.name: MessageToDict(tool) for tool in (await mesh.list("web")).tools}

    assert tools["add"]["description"] == "Adds."
    assert tools["add"]["inputSchema"]["required"] == ["a", "b"]
    assert await mesh.result("add", {"a": 40, "b": 2}, "add", **WEB) == {"sum": 42}
    assert await mesh.result("variables", {}, "variables", **WEB) == "PATH TRACKER"


@pytest.mark.parametrize(
    ("tool", "given", "reason", "said"),
    [
        ("add", {"a": 1}, "TOOL_ARGUMENTS_INVALID", "is a required property"),
        ("lie", {}, "TOOL_OUTPUT_INVALID", "is not of type"),
        ("fail", {}, "TOOL_FAILED", "no such issue"),
        ("flood", {}, "TOOL_OUTPUT_LIMIT", "tool.max_output_bytes"),
        ("broken", {}, "TOOL_NOT_FOUND", "has no tool 'broken'"),
        ("absent", {}, "TOOL_NOT_FOUND", "has no tool 'absent'"),
        ("greet", {}, "TOOL_ABILITY_DENIED", "tool.mcp_servers"),
        ("die", {}, "TOOL_SERVER_UNAVAILABLE", "broke the connection"),
        ("endless", {}, "TOOL_SERVER_UNAVAILABLE", "broke the connection"),
    ],
)
async def test_what_goes_wrong_at_a_server_is_said_and_the_next_call_works(
    mesh: Mesh, tool: str, given: dict[str, Any], reason: str, said: str
) -> None:
    failure = await mesh.failure(tool, given, f"{tool} {given}", **WEB)

    assert (failure[0], said in failure[1]) == (f"ERROR_REASON_{reason}", True), failure
    assert await mesh.result("add", {"a": 1, "b": 1}, f"after {tool}", **WEB) == {"sum": 2}


async def test_a_call_that_is_cancelled_is_cancelled_at_its_server(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CANCEL_SECONDS", BOUND_SECONDS)  # However slow this process is.
    call = mesh.begin("hang", {}, "hang", **WEB)
    assert (await call.read()).progress == "asked to hang"
    before = int(str(await mesh.result("cancelled", {}, "before", **WEB)))

    call.cancel()

    async with asyncio.timeout(BOUND_SECONDS):
        for round_ in range(1_000):
            if int(str(await mesh.result("cancelled", {}, f"after {round_}", **WEB))) > before:
                return
    pytest.fail("the server was not told")


async def test_a_server_that_does_not_listen_is_not_waited_for_and_not_used_again() -> None:
    patient, hasty = (Egress(ToolConfig(mcp_servers={"program": PROGRAM}, max_seconds=s), {}) for s in (20, 0.2))
    grant = Grant(patient.config, "acme", "web", "deaf", ())
    servers = Servers(patient, {})

    def call(egress: Egress, tool: str) -> Awaitable[Value]:
        invocation: Any = SimpleNamespace(grant=grant, egress=egress, progress=print)  # All it uses.
        return McpTool(pb.McpTool(server="program", name=tool), servers).call({}, invocation)

    pid = (await call(patient, "pid")).string_value
    with pytest.raises(AgentShellError) as caught:
        await call(hasty, "deaf")
    again = (await call(patient, "pid")).string_value
    await servers.close()

    assert (caught.value.name, again == pid) == ("TOOL_TIMEOUT", False)
    assert [is_alive(each) for each in (pid, again)] == [False, False]


async def test_a_tenant_has_a_process_of_its_own_and_there_are_only_so_many(mesh: Mesh) -> None:
    tenants = ("one", "two", "three", "one")
    pids = [str(await mesh.result("pid", {}, f"pid {n}", tenant=it, **WEB)) for n, it in enumerate(tenants)]

    assert len(set(pids)) == 4, "the third took the place of the first, which began anew"
    assert [is_alive(pid) for pid in pids] == [False, False, True, True]


def is_alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_server_is_reached_over_http_where_an_operator_allows_its_host() -> None:
    server = MCPServer("greeter")

    @server.tool()
    def greet(name: str) -> str:  # pyright: ignore[reportUnusedFunction] - the server calls it
        """Greets."""
        return f"Hello {name}"

    async with served(server.streamable_http_app()) as host:
        url = f"http://{host}/mcp"
        config = McpServerConfig(personalities=("web",), url=url)
        for hosts in ((host,), ()):
            egress = Egress(ToolConfig(mcp_servers={"greeter": config}, http_hosts=hosts), {})
            servers = Servers(egress, {})
            grant = Grant(egress.config, "acme", "web", "greet", ())
            invocation: Any = SimpleNamespace(grant=grant, egress=egress, progress=print)
            tool = McpTool(pb.McpTool(server="greeter", name="greet"), servers)
            if hosts:
                assert (await tool.define(grant)).description == "Greets."
                assert plain(await tool.call({"name": "Ann"}, invocation)) == {"result": "Hello Ann"}
            else:
                with pytest.raises(AgentShellError) as caught:
                    await tool.call({"name": "Ann"}, invocation)
                assert (caught.value.name, caught.value.metadata["refused_by"]) == ("HOST_NOT_ALLOWED", "operator")
            await servers.close()
            await egress.close()


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    """Serves an ASGI application and yields its host."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(BOUND_SECONDS):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def test_what_goes_in_and_out_of_tools_is_in_no_log(mesh: Mesh, site: str) -> None:
    calls = [
        ("http_get", {"url": f"http://{site}/page?hunter2"}),
        ("http_get", {"url": "http://127.0.0.1:1/?hunter2"}),
        ("read_issue", {"id": "hunter2"}),
        ("read_issue", {"hunter2": "hunter2"}),
        ("add", {"a": "hunter2", "b": 1}),
        ("calculator", {"expression": "hunter2"}),
    ]
    with structlog.testing.capture_logs() as logs:
        for at, (tool, given) in enumerate(calls):
            await mesh.invoke(tool, given, f"hunter2 {at}", **WEB)
        await mesh.invoke("fail", {}, "fails", **WEB)

    assert "hunter2" not in str(logs)
    assert "no such issue" not in str(logs)


# --- other personalities


async def test_another_personality_is_for_the_caller_to_ask(mesh: Mesh) -> None:
    (last,) = await mesh.invoke("ask_agent", {"personality": "plain", "question": "Why?"}, **WEB)

    assert MessageToDict(last) == {
        "agent": {"personalityId": "plain", "input": {"role": "ROLE_USER", "parts": [{"text": {"text": "Why?"}}]}}
    }
    assert (await mesh.failure("ask_agent", {"question": "Why?"}, **WEB))[0] == "ERROR_REASON_TOOL_ARGUMENTS_INVALID"
