"""LangGraph running the same steps: a process of its own that runs one load per line of stdin and prints its seconds.

    python -m benchmarks.peers.langgraph_steps postgresql://... SAVERS <<< "50 5"

A graph is a chain of async nodes that do nothing, with the Postgres checkpointer over a pool and durability="sync": a
step is over when its checkpoint is committed. A saver makes one database call at a time, however large its pool is
(1.2, `AsyncPostgresSaver._cursor`): one saver is how it is shipped, and several over one pool is how it is fastest.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from itertools import pairwise
from typing import Any, TypedDict

import uvloop
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.peers.serving import serve

# Without types here: only the `bench` extra has it.
graphs: Any = importlib.import_module("langgraph.graph")
saving: Any = importlib.import_module("langgraph.checkpoint.postgres.aio")

CONNECTIONS = 20


class State(TypedDict):
    """A graph's state."""

    text: str


async def nothing(_state: State) -> dict[str, str]:
    """A step."""
    return {}


@asynccontextmanager
async def savers(url: str, count: int) -> AsyncGenerator[list[Any]]:
    """Opens a pool, as LangGraph's documentation says, and `count` savers over it."""
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool = AsyncConnectionPool(url, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs=settings, open=False)
    async with pool:
        await pool.wait()
        made = [saving.AsyncPostgresSaver(pool) for _ in range(count)]
        await made[0].setup()
        yield made


@cache
def chain(steps: int, saver: Any) -> Any:
    """Returns a graph of steps, one after another."""
    graph = graphs.StateGraph(State)
    names = [graphs.START, *(f"s{number}" for number in range(steps)), graphs.END]
    for name in names[1:-1]:
        graph.add_node(name, nothing)
    for one, other in pairwise(names):
        graph.add_edge(one, other)
    return graph.compile(checkpointer=saver)


async def run(url: str, count: int) -> None:
    """Answers each line `GRAPHS STEPS` with the seconds it took."""
    async with savers(url, count) as made:

        async def one(number: int, steps: int) -> None:
            thread = {"configurable": {"thread_id": uuid.uuid4().hex}, "recursion_limit": steps + 1}
            await chain(steps, made[number % count]).ainvoke({"text": ""}, thread, durability="sync")

        async def burst(words: list[str]) -> tuple[float]:
            runs, steps = map(int, words)
            began = time.perf_counter()
            await asyncio.gather(*(one(number, steps) for number in range(runs)))
            return (time.perf_counter() - began,)

        await serve(burst)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2])))
