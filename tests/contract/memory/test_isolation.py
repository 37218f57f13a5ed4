"""Two walls between tenants: statements name their tenant, and Postgres hides other tenants' rows anyway."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentshell.db.database import Database
from agentshell.memory import lexical, recall
from agentshell.memory.stores import namespaces, wall
from agentshell.memory.stores.change import change
from agentshell.memory.stores.history import History
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.stores.store import Entry, Listing, Once, Place, Probe, Query, Scope, Space
from agentshell.mesh import call
from agentshell.mesh.call import Principal
from kfm.content.v1.content_pb2 import Message
from kfm.memory.v1 import memory_service_pb2 as pb

TENANTS = ["acme", "globex", "acme globex", call.SHARED_TENANT]
NAMESPACES = ["user/ann", "knowledge/guide"]
PLACES = [Place(tenant, namespace) for tenant in TENANTS for namespace in NAMESPACES]
SPACE = Space(lexical.NAME, lexical.DIMENSIONS)
VECTOR = np.ones(lexical.DIMENSIONS, dtype=np.float16)
SOME_PLACES = st.lists(st.sampled_from(PLACES), min_size=1, max_size=6, unique=True)
SETTINGS = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def allowed(asker: str, place: Place) -> bool:
    return place.tenant_id == asker or (
        place.tenant_id == call.SHARED_TENANT and place.namespace.startswith("knowledge/")
    )


def seen(records: Sequence[pb.Record]) -> set[Place]:
    return {Place(*record.text.removeprefix("tea of ").split(" in ")) for record in records}


@pytest.fixture
async def store(database: Database) -> PgvectorStore:
    """A store with one record in each place, whose text names the place."""
    store = await PgvectorStore.open(database)
    for place in PLACES:
        async with change(database, place) as connection:
            await namespaces.begin(connection, place, SPACE)
            record = pb.Record(record_id="r", text=f"tea of {place.tenant_id} in {place.namespace}")
            await store.write(connection, place, [Entry(record, VECTOR)], None)
    return store


@given(asker=st.sampled_from(TENANTS), places=SOME_PLACES, mode=st.sampled_from(pb.SearchMode.values()))
@SETTINGS
async def test_no_read_finds_what_is_anothers_even_where_it_names_the_others_places(
    store: PgvectorStore, asker: str, places: Sequence[Place], mode: pb.SearchMode.ValueType
) -> None:
    may_see = {place for place in places if allowed(asker, place)}
    weights = recall.weights(mode)
    with call.scope(Principal(asker, "ann"), None):
        probes = [Probe(places, SPACE, VECTOR)] if weights.vector else []
        found = await store.search(
            Query(places, "tea" if weights.text else None, probes, weights, None, 100, neighbour_count=1)
        )
        assert seen([hit.record for hit in found.response.hits]) == may_see
        assert seen(list((await store.get(places, ["r"])).values())) <= may_see
        listed = await store.list_records(Listing(places), None, 100, 1_000_000)
        assert seen(listed.records) == may_see
        for tenant in {place.tenant_id for place in places} - {asker, call.SHARED_TENANT}:
            assert not await store.copy(Scope(tenant), "", 100, 1_000_000)
            assert not await store.stats(tenant, "", "", 100)


async def test_nobody_writes_or_forgets_what_is_anothers(database: Database, store: PgvectorStore) -> None:
    others = Place("globex", "user/ann")
    with call.scope(Principal("acme", "ann"), None):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            async with change(database, others) as connection:
                await store.write(connection, others, [Entry(pb.Record(record_id="r", text="coffee"), None)], None)
        async with database.transaction() as connection:
            await wall.stand(connection)
            forget = pb.ForgetRequest(namespace=others.namespace, everything=True)
            assert await store.forget(connection, others, forget) == 0
    with call.scope(Principal("globex", "ann"), None):
        assert seen(list((await store.get([others], ["r"])).values())) == {others}


async def test_nobody_appends_to_or_reads_a_history_that_is_anothers(database: Database, store: PgvectorStore) -> None:
    history = History(database)
    with call.scope(Principal("globex", "ann"), None):
        await history.append("globex", "s", [Message()], "ann", Once("1", b""))
    with call.scope(Principal("acme", "ann"), None):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            await history.append("globex", "s", [Message()], "ann", Once("2", b""))
        assert not (await history.list("globex", "s", None, 10, 1_000)).messages
    with call.scope(Principal("globex", "ann"), None):
        assert (await history.list("globex", "s", None, 10, 1_000)).messages == [Message()]


@pytest.fixture
def behind(store: PgvectorStore, database_url: str) -> Generator[psycopg.Connection]:
    with psycopg.connect(database_url) as connection:
        yield connection


@pytest.mark.parametrize("asker", TENANTS)
def test_a_statement_that_names_no_tenant_is_about_the_callers_own_rows(behind: psycopg.Connection, asker: str) -> None:
    behind.execute("SELECT memory.stand(%s)", [asker])
    rows = behind.execute("SELECT tenant_id, namespace FROM memory.records").fetchall()
    assert {Place(*row) for row in rows} == {place for place in PLACES if allowed(asker, place)}
    own = sum(place.tenant_id == asker for place in PLACES)
    assert behind.execute("UPDATE memory.records SET text = ''").rowcount == own
    assert behind.execute("DELETE FROM memory.records").rowcount == own
    behind.rollback()


def test_every_table_that_has_a_tenant_is_behind_the_wall(behind: psycopg.Connection) -> None:
    bare = behind.execute(
        "SELECT relname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attname = 'tenant_id'"
        " WHERE relnamespace = 'memory'::regnamespace AND relkind = 'r' AND NOT relrowsecurity"
    ).fetchall()
    assert bare == []
