"""What a tool such as grpcurl learns of the contract from a server, without .proto files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2 as pb
from tests.contract.serving import member

from kfm.admin.v1 import admin_service_pb2
from kfm.memory.v1 import memory_service_pb2
from kfm.personality.v1 import personality_service_pb2
from kfm.provider.v1 import provider_service_pb2
from kfm.tool.v1 import tool_service_pb2
from kfm.turn.v1 import turn_service_pb2

_File = descriptor_pb2.FileDescriptorProto
WAIT_SECONDS = 10.0
CONTRACT: list[Any] = [
    made.DESCRIPTOR
    for made in (
        admin_service_pb2,
        memory_service_pb2,
        personality_service_pb2,
        provider_service_pb2,
        tool_service_pb2,
        turn_service_pb2,
    )
]


@pytest.fixture(params=["v1", "v1alpha"])
async def ask(request: pytest.FixtureRequest) -> AsyncGenerator[Any]:
    """The reflection call of a server."""
    async with member() as served, await served.start() as channel:
        yield channel.stream_stream(
            f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )


async def _files(ask: Any, question: pb.ServerReflectionRequest) -> list[_File]:
    [answer] = [answer async for answer in ask([question], timeout=WAIT_SECONDS)]
    assert not answer.HasField("error_response"), question
    return [_File.FromString(file) for file in answer.file_descriptor_response.file_descriptor_proto]


async def test_everything_in_the_contract_comes_with_what_it_means(ask: Any) -> None:
    unexplained: list[str] = []
    for served in CONTRACT:
        for file in await _files(ask, pb.ServerReflectionRequest(file_by_filename=served.name)):
            if file.package.startswith("kfm."):
                explained = {tuple(at.path) for at in file.source_code_info.location if at.leading_comments}
                unexplained += [f"{file.name}: {name}" for path, name in _named(file) if path not in explained]
    assert unexplained == []


async def test_every_method_is_found_by_its_name(ask: Any) -> None:
    for served in CONTRACT:
        for method in [method for service in served.services_by_name.values() for method in service.methods]:
            [first, *_] = await _files(ask, pb.ServerReflectionRequest(file_containing_symbol=method.full_name))
            assert first.name == served.name


async def test_what_is_described_is_what_is_served(ask: Any) -> None:
    for file in await _files(ask, pb.ServerReflectionRequest(file_containing_symbol="kfm.turn.v1.TurnService")):
        file.ClearField("source_code_info")
        served = _File()
        descriptor_pool.Default().FindFileByName(file.name).CopyToProto(served)
        assert file == served


async def test_what_there_is_not_is_not_found(ask: Any) -> None:
    for name in ("kfm.turn.v1.Nothing", "kfm.turn.v1.TurnService.Nothing", "kfm.turn.v1"):
        question = pb.ServerReflectionRequest(file_containing_symbol=name)
        [answer] = [answer async for answer in ask([question], timeout=WAIT_SECONDS)]
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


_Path = tuple[int, ...]


def _named(file: _File) -> Iterator[tuple[_Path, str]]:
    """Yields the path, as used for comments, and the name of everything named in a file."""
    yield from _messages(file.message_type, (_File.MESSAGE_TYPE_FIELD_NUMBER,))
    yield from _enums(file.enum_type, (_File.ENUM_TYPE_FIELD_NUMBER,))
    for index, service in enumerate(file.service):
        path = (_File.SERVICE_FIELD_NUMBER, index)
        yield path, service.name
        yield from _members(service.method, (*path, descriptor_pb2.ServiceDescriptorProto.METHOD_FIELD_NUMBER))


def _messages(messages: Sequence[descriptor_pb2.DescriptorProto], place: _Path) -> Iterator[tuple[_Path, str]]:
    made = descriptor_pb2.DescriptorProto
    for index, message in enumerate(messages):
        path = (*place, index)
        if message.options.map_entry:
            continue
        yield path, message.name
        yield from _members(message.field, (*path, made.FIELD_FIELD_NUMBER))
        yield from _messages(message.nested_type, (*path, made.NESTED_TYPE_FIELD_NUMBER))
        yield from _enums(message.enum_type, (*path, made.ENUM_TYPE_FIELD_NUMBER))


def _enums(enums: Sequence[descriptor_pb2.EnumDescriptorProto], place: _Path) -> Iterator[tuple[_Path, str]]:
    for index, enum in enumerate(enums):
        yield (*place, index), enum.name
        yield from _members(enum.value, (*place, index, descriptor_pb2.EnumDescriptorProto.VALUE_FIELD_NUMBER))


def _members(members: Sequence[Any], place: _Path) -> Iterator[tuple[_Path, str]]:
    for index, named in enumerate(members):
        yield (*place, index), named.name
