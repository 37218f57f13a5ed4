"""A tenant with a valid key asks every RPC for another tenant's things, by their real names.

Two tenants that own nothing call each RPC: one with another tenant's names, one with names that do not exist. Both must
get the same answer, so that not even the existence of something is revealed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as Response
from tests.flow.mesh import Mesh
from tests.flow.test_contract import WAIT_SECONDS, methods
from tests.flow.test_inputs import asks, waits
from tests.flow.test_turns import spec

from agentshell.gateway.cursor import Cursor
from agentshell.mesh import errors, ids, paging
from agentshell.mesh.call import Principal, scope
from agentshell.mesh.credentials import Keyring
from kfm.admin.v1 import admin_service_pb2 as admin
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text, ToolCall
from kfm.memory.v1 import memory_service_pb2 as memory
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.personality.v1 import personality_service_pb2 as personality
from kfm.provider.v1 import provider_service_pb2 as provider
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub
from kfm.tool.v1 import tool_service_pb2 as tool
from kfm.tool.v1.tool_service_pb2_grpc import ToolServiceStub
from kfm.turn.v1 import turn_service_pb2 as turn
from kfm.turn.v1.turn_pb2 import (
    TURN_STATE_COMPLETED,
    TURN_STATE_WAITING,
    MemoryStep,
    ModelStep,
    ParentStep,
    Plan,
    Step,
)
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub

MARK = "zanzibar"
SECRET = f"The launch code is {MARK}."
QUERY = "launch code"
_TELLING = ("count", "position", "state", "version")  # Fields whose values are compared, too.


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the owner's things, or names of nothing in the same form."""

    turn_id: str
    session_id: str
    user_id: str
    record_id: str
    request_id: str
    document: str
    page_token: str
    turns_token: str

    @classmethod
    def of_nothing(cls) -> Names:
        """Returns names in the form of the owner's that belong to nothing."""
        return cls(ids.ulid(), *(f"{kind}-{uuid.uuid4().hex}" for kind in "surqdpt"))

    @property
    def cursor(self) -> str:
        return Cursor(self.turn_id, 1, 0).encode()

    @property
    def step_id(self) -> str:
        return f"{self.turn_id}/ask"

    @property
    def namespaces(self) -> list[str]:
        return [f"knowledge/{self.user_id}", f"user/{self.user_id}", f"session/{self.session_id}"]

    def hidden(self, said: str) -> str:
        """Returns the text with these names, which the caller sent itself, masked."""
        for name in sorted((getattr(self, field) for field in self.__slots__), key=len, reverse=True):
            said = said.replace(name, "_")
        return said


def said(text: str) -> Message:
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


def generation(names: Names) -> provider.Generation:
    return provider.Generation(provider="local", messages=[said(f"What is in {names.document}?")])


def _turn(names: Names) -> turn.TurnSpec:
    """Returns a turn in the named session, below the named turn, that searches the named namespaces."""
    look = Step(step_id="look", memory=MemoryStep(namespaces=names.namespaces[:2], query=QUERY))
    return spec(
        session_id=names.session_id,
        plan=Plan(steps=[look, Step(step_id="say", depends_on=["look"], model=ModelStep())]),
        parent=ParentStep(turn_id=names.turn_id, step_id=names.step_id, depth=1),
    )


def _generate(kind: Callable[..., Any]) -> Callable[[Names], list[Any]]:
    def ask(names: Names) -> list[Any]:
        ttl, purpose = Duration(seconds=60), provider.Purpose(session_id=names.session_id)
        asked = generation(names)
        return [
            kind(generation=asked, request_id=names.request_id, purpose=purpose),
            kind(generation=asked, cache_ttl=ttl),
        ]

    return ask


def _invoke(names: Names) -> list[Any]:
    found, written = ToolCall(call_id="c", name="memory_search"), ToolCall(call_id="c", name="memory_write")
    found.arguments.update({"query": QUERY})
    written.arguments.update({"text": "ours"})
    return [
        tool.InvokeToolRequest(call=written, request_id=names.request_id, attempt=1),
        tool.InvokeToolRequest(call=found, request_id=f"{names.request_id}/found", attempt=1),
    ]


def _list(names: Names) -> list[Any]:
    asked = [memory.ListRequest(namespace=namespace) for namespace in names.namespaces]
    return [*asked, memory.ListRequest(namespace=names.namespaces[0], page_token=names.page_token)]


def _forget(names: Names) -> list[Any]:
    there = names.namespaces[0]
    return [
        memory.ForgetRequest(namespace=there, records=memory.RecordIds(record_ids=[names.record_id])),
        memory.ForgetRequest(namespace=there, source_uri=names.document),
        *(memory.ForgetRequest(namespace=name, everything=True) for name in names.namespaces),
        memory.ForgetRequest(namespace=there, everything=True, request_id=names.request_id),
    ]


def _write(names: Names) -> list[Any]:
    record = memory.Record(record_id=names.record_id, text="ours", user_id=names.user_id)
    asked = [memory.WriteRequest(namespace=name, record=record) for name in names.namespaces]
    repeated = memory.WriteRequest(namespace=names.namespaces[1], record=record, request_id=names.request_id)
    expecting = memory.WriteRequest(namespace=f"user/{names.record_id}", record=record, expected_version=1)
    return [*asked, repeated, expecting]


def _import(names: Names) -> list[Any]:
    stored = memory.StoredMessage(session_id=names.session_id, position=2, message=said("ours"))
    record = memory.StoredRecord(namespace=names.namespaces[0])
    record.record.CopyFrom(memory.Record(record_id=names.record_id, text="ours", version=1))
    return [
        memory.ImportRequest(items=[memory.Item(message=stored)]),
        memory.ImportRequest(items=[memory.Item(record=record)]),
    ]


def _documents(names: Names) -> list[Any]:
    document = memory.IngestDocument(source_uri=names.document, media_type="text/plain")
    start = memory.IngestStart(namespace=names.namespaces[0], replace_all=True)
    return [
        memory.IngestRequest(start=start),
        memory.IngestRequest(document=document),
        memory.IngestRequest(content=b"ours"),
    ]


# The requests a neighbour makes of each RPC. For one that takes a stream, each request or list is its own stream.
ASKED: dict[str, Callable[[Names], list[Any]]] = {
    "kfm.turn.v1.TurnService.RunTurn": lambda n: [turn.RunTurnRequest(request_id=n.request_id, turn=_turn(n))],
    "kfm.turn.v1.TurnService.CreateTurn": lambda n: [turn.CreateTurnRequest(request_id=n.request_id, turn=_turn(n))],
    "kfm.turn.v1.TurnService.WatchTurn": lambda n: [
        turn.WatchTurnRequest(turn_id=n.turn_id),
        turn.WatchTurnRequest(turn_id=n.turn_id, cursor=n.cursor),
    ],
    "kfm.turn.v1.TurnService.GetTurn": lambda n: [turn.GetTurnRequest(turn_id=n.turn_id)],
    "kfm.turn.v1.TurnService.ListTurns": lambda n: [
        turn.ListTurnsRequest(session_id=n.session_id),
        turn.ListTurnsRequest(page_token=n.turns_token),
    ],
    "kfm.turn.v1.TurnService.ListTurnEvents": lambda n: [
        turn.ListTurnEventsRequest(turn_id=n.turn_id),
        turn.ListTurnEventsRequest(turn_id=n.turn_id, page_token=n.page_token),
    ],
    "kfm.turn.v1.TurnService.CancelTurn": lambda n: [
        turn.CancelTurnRequest(turn_id=n.turn_id),
        turn.CancelTurnRequest(turn_id=n.turn_id, request_id=n.request_id),
    ],
    "kfm.turn.v1.TurnService.ProvideInput": lambda n: [
        turn.ProvideInputRequest(turn_id=n.turn_id, step_id=n.step_id, input=said("yes"))
    ],
    "kfm.turn.v1.TurnService.ForkTurn": lambda n: [
        turn.ForkTurnRequest(turn_id=n.turn_id),
        turn.ForkTurnRequest(turn_id=n.turn_id, step_id=n.step_id, request_id=n.request_id),
    ],
    "kfm.memory.v1.MemoryService.Write": _write,
    "kfm.memory.v1.MemoryService.BatchWrite": lambda n: [
        memory.BatchWriteRequest(namespace=name, records=[memory.Record(record_id=n.record_id, text="ours")])
        for name in n.namespaces
    ],
    "kfm.memory.v1.MemoryService.Search": lambda n: [memory.SearchRequest(namespaces=n.namespaces, query=QUERY)],
    "kfm.memory.v1.MemoryService.Get": lambda n: [
        memory.GetRequest(namespace=name, record_id=n.record_id) for name in n.namespaces
    ],
    "kfm.memory.v1.MemoryService.BatchGet": lambda n: [
        memory.BatchGetRequest(namespace=name, record_ids=[n.record_id]) for name in n.namespaces
    ],
    "kfm.memory.v1.MemoryService.List": _list,
    "kfm.memory.v1.MemoryService.Forget": _forget,
    "kfm.memory.v1.MemoryService.ForgetUser": lambda n: [
        memory.ForgetUserRequest(user_id=n.user_id),
        memory.ForgetUserRequest(user_id=n.user_id, request_id=n.request_id),
    ],
    "kfm.memory.v1.MemoryService.ListReceipts": lambda n: [
        memory.ListReceiptsRequest(),
        memory.ListReceiptsRequest(user_id=n.user_id),
        memory.ListReceiptsRequest(page_token=n.page_token),
    ],
    "kfm.memory.v1.MemoryService.Export": lambda n: [
        memory.ExportRequest(user_id=n.user_id),
        *(memory.ExportRequest(namespace=name) for name in n.namespaces),
        memory.ExportRequest(everything=True),
        memory.ExportRequest(user_id=n.user_id, cursor=n.page_token),
    ],
    "kfm.memory.v1.MemoryService.Import": _import,
    "kfm.memory.v1.MemoryService.Stats": lambda n: [
        memory.StatsRequest(),
        *(memory.StatsRequest(namespace=name) for name in n.namespaces),
        memory.StatsRequest(page_token=n.page_token),
    ],
    "kfm.memory.v1.MemoryService.AppendMessages": lambda n: [
        memory.AppendMessagesRequest(session_id=n.session_id, messages=[said("ours")], request_id=n.request_id)
    ],
    "kfm.memory.v1.MemoryService.ListMessages": lambda n: [
        memory.ListMessagesRequest(session_id=n.session_id),
        memory.ListMessagesRequest(session_id=n.session_id, page_token=n.page_token),
    ],
    "kfm.memory.v1.MemoryService.GetWindow": lambda n: [memory.GetWindowRequest(session_id=n.session_id)],
    "kfm.memory.v1.MemoryService.Ingest": lambda n: [_documents(n)],
    "kfm.memory.v1.MemoryService.IngestWithProgress": lambda n: [
        [memory.IngestWithProgressRequest(part=part) for part in _documents(n)]
    ],
    "kfm.provider.v1.ProviderService.Generate": _generate(provider.GenerateRequest),
    "kfm.provider.v1.ProviderService.StreamGenerate": _generate(provider.StreamGenerateRequest),
    "kfm.provider.v1.ProviderService.Embed": lambda n: [
        provider.EmbedRequest(texts=["x"], purpose=provider.Purpose(session_id=n.session_id))
    ],
    "kfm.provider.v1.ProviderService.Moderate": lambda _: [provider.ModerateRequest(texts=["x"])],
    "kfm.provider.v1.ProviderService.CountTokens": lambda n: [provider.CountTokensRequest(generation=generation(n))],
    "kfm.provider.v1.ProviderService.ListModels": lambda n: [
        provider.ListModelsRequest(),
        provider.ListModelsRequest(page_token=n.page_token),
    ],
    "kfm.provider.v1.ProviderService.GetUsage": lambda n: [
        provider.GetUsageRequest(),
        provider.GetUsageRequest(session_id=n.session_id),
        provider.GetUsageRequest(page_token=n.page_token),
    ],
    "kfm.personality.v1.PersonalityService.List": lambda n: [
        personality.ListRequest(),
        personality.ListRequest(page_token=n.page_token),
    ],
    "kfm.personality.v1.PersonalityService.Get": lambda _: [personality.GetRequest(with_tool_code=True)],
    "kfm.personality.v1.PersonalityService.Reload": lambda _: [personality.ReloadRequest()],
    "kfm.personality.v1.PersonalityService.Watch": lambda _: [personality.WatchRequest()],
    "kfm.tool.v1.ToolService.ListTools": lambda n: [
        tool.ListToolsRequest(personality_id="guide"),
        tool.ListToolsRequest(page_token=n.page_token),
    ],
    "kfm.tool.v1.ToolService.InvokeTool": _invoke,
    "kfm.admin.v1.AdminService.ListDeadLetters": lambda _: [admin.ListDeadLettersRequest()],
    "kfm.admin.v1.AdminService.GetDeadLetter": lambda _: [admin.GetDeadLetterRequest(dead_letter_id="agent.turns/0/0")],
    "kfm.admin.v1.AdminService.ReplayDeadLetter": lambda _: [
        admin.ReplayDeadLetterRequest(dead_letter_id="agent.turns/0/0")
    ],
    "kfm.admin.v1.AdminService.DropDeadLetter": lambda _: [
        admin.DropDeadLetterRequest(dead_letter_id="agent.turns/0/0")
    ],
    "kfm.admin.v1.AdminService.RebuildTurns": lambda _: [admin.RebuildTurnsRequest()],
}
FOR_OPERATORS = ("kfm.admin.v1.AdminService.", "kfm.personality.v1.PersonalityService.Reload")


class Owner:
    """A tenant that owns some of everything."""

    def __init__(self, mesh: Mesh, channels: dict[str, grpc.aio.Channel], names: Names, tenant_id: str) -> None:
        self.mesh = mesh
        self.channels = channels
        self.names = names
        self.metadata = (("authorization", f"Bearer {mesh.key(tenant_id, names.user_id)}"),)
        self.before = b""

    async def look(self) -> bytes:
        """Returns everything the owner has, as the owner sees it."""
        names = self.names
        options: dict[str, Any] = {"metadata": self.metadata, "timeout": WAIT_SECONDS}
        turns, kept = TurnServiceStub(self.channels["gateway"]), MemoryServiceStub(self.channels["memory"])
        found: list[Response] = [
            await turns.GetTurn(turn.GetTurnRequest(turn_id=names.turn_id), **options),
            await turns.ListTurns(turn.ListTurnsRequest(), **options),
            await turns.ListTurnEvents(turn.ListTurnEventsRequest(turn_id=names.turn_id), **options),
            await kept.ListReceipts(memory.ListReceiptsRequest(), **options),
            *[item async for item in kept.Export(memory.ExportRequest(everything=True), **options)],
        ]
        return b"".join(each.SerializeToString(deterministic=True) for each in found)


@pytest.fixture(scope="module")
async def owner(mesh: Mesh) -> AsyncGenerator[Owner]:
    tenant_id = f"owner-{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        channels = {
            service: await stack.enter_async_context(grpc.aio.insecure_channel(mesh.address_of(service)))
            for service in {service for service, _ in methods()}
        }
        client = await stack.enter_async_context(mesh.client(tenant_id))
        nothing = Names.of_nothing()
        await client.ask(SECRET, session=nothing.session_id, request_id=nothing.request_id)
        turn_id = await waits(client, asks(choices=["yes", "no"]))
        yield await _settled(Owner(mesh, channels, replace(nothing, turn_id=turn_id), tenant_id))


async def _settled(owner: Owner) -> Owner:
    names = owner.names
    options: dict[str, Any] = {"metadata": owner.metadata, "timeout": WAIT_SECONDS}
    kept = MemoryServiceStub(owner.channels["memory"])
    for namespace in names.namespaces:
        for record_id in (names.record_id, "another"):
            record = memory.Record(record_id=record_id, text=SECRET, user_id=names.user_id)
            await kept.Write(memory.WriteRequest(namespace=namespace, record=record), **options)
    async with asyncio.timeout(WAIT_SECONDS):  # The turn's own messages arrive as it ends.
        while not (
            await kept.ListMessages(memory.ListMessagesRequest(session_id=names.session_id), **options)
        ).messages:
            pass
    history = memory.AppendMessagesRequest(session_id=names.session_id, messages=[said(SECRET)] * 2)
    history.request_id, history.user_id = names.request_id, names.user_id
    await kept.AppendMessages(history, **options)
    await kept.Forget(memory.ForgetRequest(namespace="user/nobody", everything=True), **options)
    for asked in _generate(provider.GenerateRequest)(names):
        await ProviderServiceStub(owner.channels["provider"]).Generate(asked, **options)
    for asked in _invoke(names):
        _ = [told async for told in ToolServiceStub(owner.channels["tool"]).InvokeTool(asked, **options)]
    page = await kept.List(memory.ListRequest(namespace=names.namespaces[0], page_size=1), **options)
    turns = TurnServiceStub(owner.channels["gateway"])
    ended = [TURN_STATE_WAITING, TURN_STATE_COMPLETED]
    async with asyncio.timeout(WAIT_SECONDS):  # The list lags a moment behind.
        while [each.state for each in (await turns.ListTurns(turn.ListTurnsRequest(), **options)).turns] != ended:
            pass
    listed = await turns.ListTurns(turn.ListTurnsRequest(page_size=1), **options)
    assert page.next_page_token
    assert listed.next_page_token
    owner.names = replace(names, page_token=page.next_page_token, turns_token=listed.next_page_token)
    owner.before = await owner.look()
    assert MARK.encode() in owner.before
    return owner


def test_a_neighbour_asks_every_rpc_that_there_is() -> None:
    assert ASKED.keys() == {method.full_name for _, method in methods()}


@pytest.mark.parametrize("inside", [False, True], ids=["with an API key", "with a token of the mesh"])
@pytest.mark.parametrize(("service", "method"), methods(), ids=lambda value: getattr(value, "full_name", value))
async def test_no_rpc_tells_a_neighbour_even_whether_there_is_something(
    owner: Owner, service: str, method: Any, inside: bool
) -> None:
    told = [
        [await _ask(owner, service, method, asked, names, metadata) for asked in ASKED[method.full_name](names)]
        for names in (owner.names, Names.of_nothing())
        for metadata in [_neighbour(owner.mesh, names.user_id, inside)]
    ]
    assert told[0] == told[1]
    if method.full_name.startswith(FOR_OPERATORS):
        assert {reason for reason, *_ in told[0]} == {"PERMISSION_DENIED"}
    assert await owner.look() == owner.before


def _invented(tenant_id: str) -> list[tuple[str, str, Any]]:
    """Returns requests with forged page tokens, valid in form, for positions that cannot exist."""
    places: list[tuple[str, str, Any, tuple[int | str, ...]]] = [
        ("gateway", "turn.v1.TurnService.ListTurns", turn.ListTurnsRequest(), (2**62, "t")),
        ("gateway", "turn.v1.TurnService.ListTurns", turn.ListTurnsRequest(), (10**40, "t")),
        ("memory", "memory.v1.MemoryService.ListMessages", memory.ListMessagesRequest(session_id="s"), (2**63,)),
        ("provider", "provider.v1.ProviderService.GetUsage", provider.GetUsageRequest(), ("1st of May",)),
    ]
    for _, _, request, place in places:
        with scope(Principal(tenant_id, "ann"), None):
            request.page_token = paging.encode(request, *place)
    return [(service, f"kfm.{method}", request) for service, method, request, _ in places]


def _unspeakable() -> list[tuple[str, str, Any]]:
    """Returns requests with names that contain NUL, which Postgres cannot store."""
    nul, call = "a\0b", ToolCall(call_id="c", name="memory_write")
    return [
        ("gateway", "kfm.turn.v1.TurnService.GetTurn", turn.GetTurnRequest(turn_id=nul)),
        ("gateway", "kfm.turn.v1.TurnService.WatchTurn", turn.WatchTurnRequest(turn_id=nul)),
        ("gateway", "kfm.turn.v1.TurnService.ListTurns", turn.ListTurnsRequest(session_id=nul)),
        (
            "provider",
            "kfm.provider.v1.ProviderService.Generate",
            provider.GenerateRequest(generation=provider.Generation(messages=[said("x")]), request_id=nul),
        ),
        (
            "tool",
            "kfm.tool.v1.ToolService.InvokeTool",
            tool.InvokeToolRequest(call=call, request_id=nul, attempt=1),
        ),
    ]


async def test_what_no_client_says_by_mistake_is_refused_by_name_and_is_no_defect(owner: Owner) -> None:
    known, tenant_id, names = {method.full_name: method for _, method in methods()}, "inventor", Names.of_nothing()
    metadata = (("authorization", f"Bearer {owner.mesh.key(tenant_id, 'ann')}"),)
    asked = [*_invented(tenant_id), *_unspeakable()]
    told = [await _ask(owner, service, known[method], request, names, metadata) for service, method, request in asked]
    assert [reason for reason, *_ in told] == ["PAGE_TOKEN_INVALID"] * 4 + ["INVALID_REQUEST"] * 5


def _neighbour(mesh: Mesh, principal_id: str, inside: bool) -> tuple[tuple[str, str]]:
    """Returns the credential of a new tenant whose principal has the same name as another tenant's."""
    tenant_id = f"neighbour-{uuid.uuid4().hex[:8]}"
    if inside:
        keyring = Keyring(mesh.data_dir / "api-keys.json", mesh.data_dir / "mesh.key")
        credential = keyring.mint(Principal(tenant_id, principal_id))
    else:
        credential = mesh.key(tenant_id, principal_id)
    return (("authorization", f"Bearer {credential}"),)


async def _ask(
    owner: Owner, service: str, method: Any, asked: Any, names: Names, metadata: tuple[tuple[str, str]]
) -> tuple[Any, ...]:
    """Returns what the caller of the RPC learns: how it ends, and which fields are filled."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    requests = cast("list[Any]", asked if isinstance(asked, list) else [asked])
    answer = message_factory.GetMessageClass(method.output_type).FromString
    stub = getattr(owner.channels[service], kind)(
        path, request_serializer=type(requests[0]).SerializeToString, response_deserializer=answer
    )
    made = stub(requests if method.client_streaming else requests[0], timeout=WAIT_SECONDS, metadata=metadata)
    filled = set[str]()
    try:
        if not method.server_streaming:
            filled = _seen(await made)
        elif method.name == "Watch":  # It never ends.
            filled = _seen(await made.read())
        else:
            async for response in made:
                filled |= _seen(response)
        return ("OK", filled)
    except grpc.aio.AioRpcError as rpc_error:
        error = errors.of(rpc_error)
        assert MARK not in str(error.metadata) + error.message
        told = (
            error.message,
            *error.metadata.values(),
            *(said for violation in error.violations for said in violation),
        )
        return (error.name, [names.hidden(said) for said in told])
    finally:
        made.cancel()


def _seen(response: Response) -> set[str]:
    assert MARK.encode() not in response.SerializeToString()
    return set(_filled(response, ""))


def _filled(message: Response, path: str) -> Iterator[str]:
    for field, value in message.ListFields():
        name = f"{path}.{field.name}"
        yield f"{name}={value}" if field.name.endswith(_TELLING) else name
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for child in value if field.is_repeated else [value]:
            yield from _filled(child, name)
