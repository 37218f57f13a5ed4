"""Server reflection, v1 and v1alpha: grpcio-reflection serves only v1alpha, and the two differ only in name.

Its answers include the contract's comments, which generated code lacks, so that `grpcurl describe` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"

_Comments = Mapping[str, descriptor_pb2.SourceCodeInfo]


def add(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets explorers such as grpcurl list, describe and call `services` without their .proto files."""
    names = [*services, f"{_V1}.ServerReflection", f"{_V1ALPHA}.ServerReflection"]
    servicer: Any = reflection.aio.ReflectionServicer(names, pool=_Pool())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    _describe_v1()
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(f"{_V1}.ServerReflection", {"ServerReflectionInfo": handler})


class _Pool:
    """The process's descriptor pool, as grpcio-reflection uses it, but with comments."""

    _known: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._known, name)

    def FindFileByName(self, name: str) -> _File:  # noqa: N802 - the pool's name
        return _File(self._known.FindFileByName(name), self._comments)

    def FindFileContainingSymbol(self, name: str) -> _File:  # noqa: N802 - the pool's name
        try:
            found = self._known.FindFileContainingSymbol(name)
        except KeyError:  # The pool does not find methods as symbols.
            found = self._known.FindMethodByName(name).containing_service.file
        return _File(found, self._comments)

    @cached_property
    def _comments(self) -> _Comments:
        written = resources.files("kfm").joinpath("contract.binpb").read_bytes()
        return {file.name: file.source_code_info for file in descriptor_pb2.FileDescriptorSet.FromString(written).file}


@dataclass(frozen=True, slots=True)
class _File:
    """A generated file, with the comments of its source."""

    _file: FileDescriptor
    _comments: _Comments

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def dependencies(self) -> list[_File]:
        return [_File(file, self._comments) for file in self._file.dependencies]

    def CopyToProto(self, proto: descriptor_pb2.FileDescriptorProto) -> None:  # noqa: N802 - the file's name for it
        self._file.CopyToProto(proto)
        if self.name in self._comments:
            proto.source_code_info.CopyFrom(self._comments[self.name])


def _describe_v1() -> None:
    description = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(description)
    description.name = "grpc/reflection/v1/reflection.proto"
    description.package = _V1
    for message in description.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_V1ALPHA}.", f".{_V1}.")
    for method in description.service[0].method:
        method.input_type = method.input_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
        method.output_type = method.output_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
    descriptor_pool.Default().AddSerializedFile(description.SerializeToString())
