"""Helpers to call the Memory service and to build requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message as Request
from google.protobuf.struct_pb2 import Struct

from agentshell.mesh import errors
from agentshell.mesh.errors import AgentShellError
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.memory.v1 import memory_service_pb2 as pb

TIMEOUT_SECONDS = 20.0
USER, GUIDE = "user/ann", "knowledge/guide"


@dataclass(frozen=True)
class Caller:
    """Calls the service for a tenant, by the request's type. Raises what the service raised."""

    stub: Any
    credential: str

    async def __call__(self, request: Request) -> Any:
        return await self.send(type(request).__name__.removesuffix("Request"), request)

    async def send(self, method: str, request: Any) -> Any:
        metadata = (("authorization", f"Bearer {self.credential}"),)
        try:
            return await getattr(self.stub, method)(request, metadata=metadata, timeout=TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise errors.of(error) from None

    async def refused(self, request: Request) -> AgentShellError:
        """Returns the error of a request that must fail."""
        with pytest.raises(AgentShellError) as error:
            await self(request)
        return error.value

    async def search(self, query: str, *namespaces: str, **more: Any) -> list[str]:
        """Returns the ids of the records found."""
        response = await self(pb.SearchRequest(namespaces=namespaces or [USER], query=query, **more))
        return [hit.record.record_id for hit in response.hits]

    async def write(self, namespace: str = USER, **texts: str) -> None:
        """Writes a record for each name."""
        records = [pb.Record(record_id=name, text=text) for name, text in texts.items()]
        await self(pb.BatchWriteRequest(namespace=namespace, records=records))

    async def ingest(self, *documents: tuple[str, bytes], replace_all: bool = False) -> Any:
        """Ingests Markdown into GUIDE, in pieces of seven bytes."""
        parts = [pb.IngestRequest(start=pb.IngestStart(namespace=GUIDE, replace_all=replace_all))]
        for uri, content in documents:
            parts.append(pb.IngestRequest(document=pb.IngestDocument(source_uri=uri, media_type="text/markdown")))
            parts += [pb.IngestRequest(content=content[at : at + 7]) for at in range(0, len(content), 7)]
        return await self.send("Ingest", iter(parts))

    async def forget(self, namespace: str, **what: Any) -> tuple[int, int]:
        """Forgets, and returns the numbers of records and messages forgotten."""
        response = await self(pb.ForgetRequest(namespace=namespace, **what))
        return response.record_count, response.message_count

    async def export(self, **what: Any) -> list[Any]:
        """Returns everything in an Export."""
        metadata = (("authorization", f"Bearer {self.credential}"),)
        call = self.stub.Export(pb.ExportRequest(**what), metadata=metadata, timeout=TIMEOUT_SECONDS)
        try:
            return [response async for response in call]
        except grpc.aio.AioRpcError as error:
            raise errors.of(error) from None

    async def ids(self, namespace: str = GUIDE) -> list[str]:
        response = await self(pb.ListRequest(namespace=namespace, page_size=500))
        return [record.record_id for record in response.records]


def struct(**fields: Any) -> Struct:
    made = Struct()
    made.update(fields)
    return made


def said(text: str) -> Message:
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


def texts(messages: Iterable[Message]) -> list[str]:
    return [message.parts[0].text.text for message in messages]


async def pages_of(caller: Caller, request: Any) -> list[Any]:
    """Returns all pages."""
    pages = [await caller(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(await caller(request))
    return pages
