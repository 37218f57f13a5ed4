"""Server reflection, v1 and v1alpha: grpcio-reflection serves v1alpha only, and the two differ in their name alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"


def add(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets explorers such as grpcurl list, describe and call `services` without having their .proto files."""
    names = [*services, f"{_V1}.ServerReflection", f"{_V1ALPHA}.ServerReflection"]
    servicer: Any = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    _describe_v1()
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(f"{_V1}.ServerReflection", {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(f"{_V1}.ServerReflection", {"ServerReflectionInfo": handler}),)
    )


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
