"""LangGraph running the mocked turn: the model asks for a tool, the tool answers, the model answers.

    python -m benchmarks.peers.langgraph_turn postgresql://... MODEL_BASE_URL <<< "http 100 1"

A line is `KIND TURNS CALLERS`; the answer is the seconds of all turns together, then of each. Kinds: `http` calls the
mocked model through OpenAI's SDK, streamed; `inner` has the model in this process, which costs nothing; `bare` is
`http` without LangGraph: no engine can be faster. Messages are plain dictionaries, the cheapest state
there is; a caller has a saver of its own over one pool, which is the fastest way; durability is "sync".
"""

from __future__ import annotations

import asyncio
import importlib
import operator
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import uvloop
from openai import AsyncOpenAI

from benchmarks.peers.langgraph_steps import savers
from benchmarks.peers.model import ANSWER, CALL_ID
from benchmarks.peers.serving import serve

graphs: Any = importlib.import_module("langgraph.graph")  # Without types here: only the `bench` extra has it.

CALLERS = 20
Message = dict[str, Any]
Model = Callable[[list[Message]], Awaitable[Message]]

_MODEL = "tool-calculator"
_ARGUMENTS = '{"expression": "6 * 7"}'
_FUNCTION = {"name": "calculator", "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}}}
_TOOLS: Any = [{"type": "function", "function": _FUNCTION}]


class State(TypedDict):
    """A graph's state."""

    messages: Annotated[list[Message], operator.add]


def http_model(base_url: str) -> Model:
    """Returns a model that is called over HTTP."""
    client = AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0)

    async def ask(messages: list[Message]) -> Message:
        text, calls = "", dict[str, Message]()
        asked: Any = messages
        options: Any = {"include_usage": True}
        create = client.chat.completions.create
        async with await create(
            model=_MODEL, messages=asked, tools=_TOOLS, stream=True, stream_options=options
        ) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    for call in choice.delta.tool_calls or ():
                        calls[call.id or ""] = call.model_dump(exclude={"index"})
        return {"role": "assistant", "content": text} | ({"tool_calls": list(calls.values())} if calls else {})

    return ask


async def inner_model(messages: list[Message]) -> Message:
    """Stands in for the model, in this process."""
    if messages[-1]["role"] == "tool":
        return {"role": "assistant", "content": ANSWER}
    function = {"name": _FUNCTION["name"], "arguments": _ARGUMENTS}
    call = {"id": CALL_ID, "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def calculator(call: Message) -> Message:
    """Stands in for the tool; answers what our calculator would."""
    return {"role": "tool", "tool_call_id": call["id"], "content": '{"value": "42"}'}


def graph(model: Model, saver: Any) -> Any:
    """Returns the loop of a model and its tools."""

    async def ask(state: State) -> dict[str, list[Message]]:
        return {"messages": [await model(state["messages"])]}

    async def work(state: State) -> dict[str, list[Message]]:
        return {"messages": [calculator(call) for call in state["messages"][-1]["tool_calls"]]}

    def where(state: State) -> str:
        return "tool" if "tool_calls" in state["messages"][-1] else graphs.END

    loop = graphs.StateGraph(State).add_node("model", ask).add_node("tool", work)
    loop = loop.add_edge(graphs.START, "model").add_conditional_edges("model", where, ["tool", graphs.END])
    return loop.add_edge("tool", "model").compile(checkpointer=saver)


async def through(loop: Any, question: list[Message]) -> str:
    """Runs a turn in a thread of its own; returns what was answered."""
    thread = {"configurable": {"thread_id": uuid.uuid4().hex}}
    state = await loop.ainvoke({"messages": question}, thread, durability="sync")
    return state["messages"][-1]["content"]


async def bare(model: Model, question: list[Message]) -> str:
    """Runs a turn with no engine."""
    asked = await model(question)
    answered = await model([*question, asked, *(calculator(call) for call in asked["tool_calls"])])
    return answered["content"]


async def main(url: str, base_url: str) -> None:
    """Answers each line."""
    http, question = http_model(base_url), [{"role": "user", "content": _ARGUMENTS}]
    async with savers(url, CALLERS) as made:
        loops = {
            kind: [graph(model, saver) for saver in made] for kind, model in (("http", http), ("inner", inner_model))
        }

        async def call(kind: str, caller: int, turns: int) -> list[float]:
            seconds: list[float] = []
            for _ in range(turns):
                began = time.perf_counter()
                turn = bare(http, question) if kind == "bare" else through(loops[kind][caller], question)
                if await turn != ANSWER:
                    raise RuntimeError("the turn ended without the answer of the mocked model")
                seconds.append(time.perf_counter() - began)
            return seconds

        async def answer(words: list[str]) -> list[float]:
            kind, turns, callers = words[0], int(words[1]), int(words[2])
            began = time.perf_counter()
            found = await asyncio.gather(*(call(kind, caller, turns // callers) for caller in range(callers)))
            return [time.perf_counter() - began, *(seconds for each in found for seconds in each)]

        await serve(answer)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
