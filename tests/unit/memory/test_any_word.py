"""`memory.any_word`, in the database: no text makes a malformed query, and a text always matches itself."""

from __future__ import annotations

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.db.database import Database
from agentshell.memory.stores.pgvector import PgvectorStore

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200) | st.lists(
    st.sampled_from(
        ["tea", "'", "''", "\\", "\\'", "&", "|", "!", ":*", "<->", "(", ")", "a.b/c", "x@y.z", "1e5", "-3"]
    )
).map("".join)


async def test_any_text_is_a_query_that_matches_the_text_itself(database: Database) -> None:
    await PgvectorStore.open(database)
    with psycopg.connect(database.url, autocommit=True) as connection:

        @given(TEXTS)
        @settings(max_examples=300)
        def check(text: str) -> None:
            row = connection.execute(
                "SELECT to_tsvector('english', %(text)s) @@ memory.any_word(%(text)s),"
                " length(to_tsvector('english', %(text)s))",
                {"text": text},
            ).fetchone()
            assert row in [(True, row[1] if row else 0), (None, 0)]

        check()
