"""Forgets for good: records, histories, and everything about a user, with a receipt in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence

from agentshell.db.database import Connection, Database
from agentshell.memory import checks
from agentshell.memory.stores import change, namespaces, once, receipts, sessions, wall
from agentshell.memory.stores.store import Place, Store
from agentshell.mesh import call, paging
from agentshell.mesh.errors import invalid
from kfm.memory.v1 import memory_service_pb2 as pb


def whole_namespaces(user_id: str, session_ids: Sequence[str]) -> list[str]:
    """Returns the namespaces that belong wholly to a user."""
    return [f"{receipts.USER_PREFIX}{user_id}", *(f"{sessions.PREFIX}{session_id}" for session_id in session_ids)]


class Forgetting:
    """Forgets what requests name. A concurrent change is either wholly before it, and forgotten, or wholly after it."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    async def forget(self, request: pb.ForgetRequest) -> pb.ForgetResponse:
        """Forgets in a namespace. Raises INVALID_REQUEST for an empty filter, REQUEST_ID_REUSED."""
        what = request.WhichOneof("what") or ""
        if what == "filter" and not checks.filter_of(request):
            raise invalid("filter", "is empty: say what to forget, or `everything`")
        place = checks.own(request.namespace)

        async def effect(connection: Connection) -> pb.ForgetResponse:
            response = pb.ForgetResponse(record_count=await self._store.forget(connection, place, request))
            if request.everything and place.namespace.startswith(sessions.PREFIX):
                session_id = place.namespace.removeprefix(sessions.PREFIX)
                response.message_count = await sessions.forget(connection, place.tenant_id, [session_id])
            receipt = pb.Receipt(namespace=place.namespace, what=what, record_count=response.record_count)
            receipt.message_count = response.message_count
            response.receipt.CopyFrom(await receipts.add(connection, call.current().principal, receipt))
            return response

        named = checks.once(request, request.request_id)
        async with change.change(self._database, place, alone=True) as connection:
            response = await once.within(connection, place.tenant_id, named, pb.ForgetResponse, effect)
        response.receipt.namespace = request.namespace  # The caller already knows whose it is.
        return response

    async def forget_user(self, request: pb.ForgetUserRequest) -> pb.ForgetUserResponse:
        """Forgets a user's namespace and sessions, and each record that names the user. Raises REQUEST_ID_REUSED."""
        tenant_id, user_id = call.tenant(), request.user_id

        async def effect(connection: Connection) -> pb.ForgetUserResponse:
            session_ids = await sessions.of_user(connection, tenant_id, user_id)
            whole = whole_namespaces(user_id, session_ids)
            records = await self._store.forget_user(connection, tenant_id, user_id, whole)
            messages = await sessions.forget(connection, tenant_id, session_ids)
            await change.count(connection, *(Place(tenant_id, namespace) for namespace in {*whole, *records}))
            await namespaces.forget(connection, [Place(tenant_id, namespace) for namespace in whole])
            receipt = pb.Receipt(user_id=user_id, what="user", record_count=sum(records.values()))
            receipt.message_count = messages
            return pb.ForgetUserResponse(receipt=await receipts.add(connection, call.current().principal, receipt))

        named = checks.once(request, request.request_id)
        async with change.change_all(self._database, tenant_id) as connection:
            response = await once.within(connection, tenant_id, named, pb.ForgetUserResponse, effect)
        response.receipt.user_id = user_id
        return response

    async def receipts(self, request: pb.ListReceiptsRequest) -> pb.ListReceiptsResponse:
        """Lists receipts, newest first. Raises PAGE_TOKEN_INVALID."""
        limit = paging.page_size(request.page_size, default=50, most=500)
        (before,) = paging.decode(request, request.page_token, str) or (None,)
        async with wall.reading(self._database) as connection:
            found = await receipts.read(connection, call.tenant(), request.user_id, before, limit + 1)
        response = pb.ListReceiptsResponse(receipts=found[:limit])
        if len(found) > limit:
            response.next_page_token = paging.encode(request, found[limit - 1].receipt_id)
        return response
