"""The tool that writes to memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from agentshell.mesh import call, ids
from agentshell.tool.invocation import Invocation
from kfm.memory.v1 import memory_service_pb2 as pb

Text = Annotated[
    str,
    Field(min_length=1, max_length=8192, pattern=r"^[^\x00]*$", description="One thing, in words that stand alone."),
]
Kind = Annotated[
    Literal["fact", "preference"],
    Field(description="fact: something held to be true; preference: something that the user likes."),
]

_KINDS = {"fact": pb.RECORD_KIND_FACT, "preference": pb.RECORD_KIND_PREFERENCE}


class Written(BaseModel):
    """Where it was written."""

    namespace: str
    record_id: str


async def memory_write(invocation: Invocation, /, *, text: Text, kind: Kind = "fact") -> Written:
    """Writes down something about the user, to be found by memory_search in later conversations."""
    namespace = f"user/{call.current().principal.principal_id}"
    request = pb.WriteRequest(
        namespace=namespace,
        record=pb.Record(kind=_KINDS[kind], text=text),
        request_id=ids.digest("tool", invocation.request_id),  # Memory writes it once, however often this runs.
    )
    written = await invocation.memory.Write(request)
    return Written(namespace=namespace, record_id=written.record.record_id)
