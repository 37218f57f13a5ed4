"""The least that a gateway in gRPC and Python costs: a bare grpc.aio server that calls the vendor with bare HTTP.

    python -m benchmarks.peers.bare_gateway BASE_URL

The service and its messages are ours. It knows no caller, no budget, no price, no trace and no error, and no SDK.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import grpc.aio
import uvloop

from benchmarks.http_client import HttpClient
from benchmarks.peers.serving import serve
from benchmarks.peers.upstream import MODEL, nothing
from kfm.content.v1.content_pb2 import Message, Part, Text, Usage
from kfm.provider.v1 import provider_service_pb2 as pb
from kfm.provider.v1.provider_service_pb2_grpc import (
    ProviderServiceServicer,
    add_ProviderServiceServicer_to_server,
)

_PATH = "/chat/completions"
_DATA = b"data: "
_Context = grpc.aio.ServicerContext[Any, Any]


class BareGateway(ProviderServiceServicer):
    """Only translates."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> pb.GenerateResponse:  # noqa: N802 - the RPC's name
        """Calls the vendor without a stream."""
        body = b"".join([data async for data in self._http.post(_PATH, _body(request.generation))])
        answer = json.loads(body)
        return _response(answer["choices"][0]["message"]["content"], answer["usage"])

    async def StreamGenerate(  # noqa: N802 - the RPC's name
        self, request: pb.StreamGenerateRequest, context: _Context
    ) -> AsyncGenerator[pb.StreamGenerateResponse]:
        """Passes on what comes, in the batches in which it came."""
        texts: list[str] = []
        usage: Mapping[str, Any] = {}
        async for data in self._http.post(_PATH, _body(request.generation, stream=True)):
            grown: list[str] = []
            for event in data.split(b"\n\n"):
                if event.startswith(_DATA + b"{"):
                    chunk = json.loads(event[len(_DATA) :])
                    usage = chunk["usage"] or usage
                    grown += [text for choice in chunk["choices"] if (text := choice["delta"].get("content"))]
            texts += grown
            if grown:
                yield pb.StreamGenerateResponse(deltas=[pb.GenerationDelta(text=text) for text in grown])
        yield pb.StreamGenerateResponse(finish=_response("".join(texts), usage))


def _body(generation: pb.Generation, *, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": message.parts[0].text.text} for message in generation.messages]
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return json.dumps({"model": generation.model, "messages": messages, **options}).encode()


def _response(text: str, usage: Mapping[str, Any]) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        message=Message(parts=[Part(text=Text(text=text))]),
        model=MODEL,
        finish_reason=pb.FINISH_REASON_STOP,
        usage=Usage(input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]),
    )


async def main(base_url: str) -> None:
    """Listens on loopback."""
    server, http = grpc.aio.server(), HttpClient(base_url, {})
    bare = BareGateway(http)  # pyright: ignore[reportAbstractUsage] - nobody asks for the rest
    add_ProviderServiceServicer_to_server(bare, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    await serve(nothing, address)
    await server.stop(0)
    http.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
