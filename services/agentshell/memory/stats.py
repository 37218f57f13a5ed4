"""Counts what namespaces hold, wherever it is kept."""

from __future__ import annotations

from agentshell.db.database import Database
from agentshell.memory.stores import namespaces, sessions, wall
from agentshell.memory.stores.store import Place, Store
from agentshell.mesh import call, paging
from kfm.memory.v1.memory_service_pb2 import NamespaceStats, StatsRequest, StatsResponse


async def count(database: Database, store: Store, request: StatsRequest) -> StatsResponse:
    """Returns what a namespace holds, or a page of the tenant's namespaces. Raises PAGE_TOKEN_INVALID."""
    tenant_id = call.tenant()
    limit = paging.page_size(request.page_size, default=50, most=500)
    (after,) = paging.decode(request, request.page_token, str) or ("",)
    # One more than a page of each kind: then the page is complete, and it is known whether there are more.
    found = {each.namespace: each for each in await store.stats(tenant_id, request.namespace, after, limit + 1)}
    async with wall.reading(database) as connection:
        for session_id, messages in (
            await sessions.count(connection, tenant_id, *_sessions(request.namespace, after), limit + 1)
        ).items():
            name = f"{sessions.PREFIX}{session_id}"
            found.setdefault(name, NamespaceStats(namespace=name)).message_count = messages
        names = sorted(found)
        listed = [found[name] for name in names[:limit]]
        spaces = await namespaces.read(connection, [Place(tenant_id, each.namespace) for each in listed])
    for each in listed:
        if of := spaces.get(Place(tenant_id, each.namespace)):
            each.embedder, each.dimension = of.current.embedder, of.current.dimension
            each.next_embedder = of.next.embedder if of.next else ""
    response = StatsResponse(namespaces=listed, store=store.abilities.name)
    if len(names) > limit:
        response.next_page_token = paging.encode(request, names[limit - 1])
    return response


def _sessions(namespace: str, after: str) -> tuple[str | None, str]:
    """Returns the session to count (None: any), and the one after which to begin."""
    if namespace:
        return namespace.removeprefix(sessions.PREFIX) if namespace.startswith(sessions.PREFIX) else "", ""
    if after.startswith(sessions.PREFIX):
        return None, after.removeprefix(sessions.PREFIX)
    return ("", "") if after > sessions.PREFIX else (None, "")
