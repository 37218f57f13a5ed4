"""What a List asks for, and where its pages resume."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, cast

from agentshell.memory import checks
from agentshell.memory.stores.store import Listing, Position
from agentshell.mesh import paging
from kfm.memory.v1.memory_service_pb2 import ListRequest

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Key = Literal["record_id", "create_time", "update_time"]


def of(request: ListRequest) -> Listing:
    """Returns what to list. Raises INVALID_REQUEST."""
    key, _, way = (request.order_by or "record_id").partition(" ")
    places = checks.readable(request.namespace)
    return Listing(places, checks.filter_of(request), request.kinds, cast("_Key", key), way == "desc")


def position(request: ListRequest) -> Position | None:
    """Returns the position after which the page begins; None for the first page. Raises PAGE_TOKEN_INVALID."""
    decoded = paging.decode(request, request.page_token, str, str, int)
    if decoded is None:
        return None
    record_id, tenant_id, microseconds = decoded
    return Position(_EPOCH + microseconds * _MICROSECOND, record_id, tenant_id)


def token(request: ListRequest, last: Position) -> str:
    """Returns the token for the page after a position."""
    microseconds = (last.time - _EPOCH) // _MICROSECOND if last.time else 0
    return paging.encode(request, last.record_id, last.tenant_id, microseconds)
