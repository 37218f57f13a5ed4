"""Questions from newcomers to the guide without a model: real documents, real search, the local provider."""

from __future__ import annotations

import uuid
from typing import NamedTuple

import pytest

from kfm.content.v1.content_pb2 import Message
from xenocomm import Client

LEAST_SHARE_RIGHT = 0.85


class Case(NamedTuple):
    """A question, the document that must be cited and the phrase that must be quoted."""

    question: str
    document: str
    phrase: str


DEMO = [
    Case("What happens if the process is killed during a turn?", "durability.md", "it goes on from the log and ends"),
    Case("How do I start Agent Shell?", "quickstart.md", "run `agentshell up`"),
    Case("How do I add a personality?", "personalities.md", "make a folder with a manifest and a prompt"),
]
CASES = [
    *DEMO,
    Case("What is Agent Shell?", "overview.md", "gRPC service mesh for AI agents"),
    Case("What do I need to install it?", "quickstart.md", "Python 3.11 or newer"),
    Case("Does it need Docker?", "quickstart.md", "are not needed"),
    Case("How do I continue a conversation?", "quickstart.md", "`--session` continues a conversation"),
    Case("How can I see my turns?", "quickstart.md", "agentshell turns list"),
    Case("Which providers are there?", "providers.md", "`local`, `openai` and `anthropic`"),
    Case("Can I use Claude from Anthropic?", "providers.md", "Set `ANTHROPIC_API_KEY`"),
    Case("What does a turn cost?", "providers.md", "micro-USD"),
    Case("How many steps can a turn have?", "turns.md", "25 steps"),
    Case("What is a session?", "turns.md", "A session is a conversation"),
    Case("How does a client resume a stream after it lost its connection?", "turns.md", "the last cursor"),
    Case("What happens when a step fails?", "turns.md", "the step is tried again"),
    Case("How do I add my own documents?", "memory.md", "`MemoryService.Ingest`"),
    Case("How do I delete something from memory?", "memory.md", "Call `Forget`"),
    Case("How are tenants isolated from each other?", "security.md", "comes from the credential alone"),
    Case("Is the traffic encrypted?", "security.md", "plain HTTP/2"),
    Case("Where is my API key?", "security.md", "keeps it in the data directory"),
    Case("Can the answer be lost after a power cut?", "durability.md", "nothing that was acknowledged is lost"),
    Case("The port is already in use, what can I do?", "troubleshooting.md", "`AGENTSHELL_SERVER__ADDRESS"),
    Case("How do I configure it with environment variables?", "configuration.md", "AGENTSHELL_RUNTIME__MAX_STEPS"),
]


async def ask(client: Client, question: str, session: str = "") -> Message:
    answer = await client.ask(question, personality="guide", provider="local", session=session)
    return answer.output


def fault(case: Case, output: Message) -> str:
    """Returns what is wrong with an answer; empty: nothing."""
    text = output.parts[0].text
    cited = [citation.source_uri.removeprefix("knowledge/") for citation in text.citations]
    quoted = " ".join(" ".join(text.text[c.start_index : c.end_index] for c in text.citations).split())
    if case.document not in cited:
        return f"{case.question} cites {cited}, not {case.document}"
    return "" if case.phrase in quoted else f"{case.question} does not quote {case.phrase!r}: {quoted}"


@pytest.mark.parametrize("case", DEMO, ids=lambda case: case.question)
async def test_the_questions_of_the_demo_are_answered(client: Client, case: Case) -> None:
    assert not fault(case, await ask(client, case.question))


async def test_most_of_what_newcomers_ask_is_answered(client: Client) -> None:
    faults = [found for case in CASES if (found := fault(case, await ask(client, case.question)))]

    assert len(faults) <= (1 - LEAST_SHARE_RIGHT) * len(CASES), "\n".join(faults)


@pytest.mark.parametrize("question", ["What is the capital of France?", "How do I bake bread?"])
async def test_what_the_documents_do_not_say_is_not_answered(client: Client, question: str) -> None:
    text = (await ask(client, question)).parts[0].text

    assert text.text.startswith("I found no answer in the documents.")
    assert not text.citations


@pytest.mark.parametrize(
    ("question", "following"),
    [
        ("How do I add a personality?", Case("And how do I remove it?", "personalities.md", "Delete its folder.")),
        ("How do I add a personality?", Case("And how is it validated?", "personalities.md", "PACK_INVALID")),
        ("How do I start Agent Shell?", Case("And how do I stop it?", "quickstart.md", "press ctrl-C")),
        ("How do I back up the data?", Case("And where is it?", "durability.md", "in the data directory")),
        # The search must also use the previous question.
        ("What is a namespace?", Case("And who can read it?", "memory.md", "all tenants can read it")),
        ("How does memory search?", Case("And how do I write to it?", "memory.md", "Call `Write`")),
    ],
)
async def test_a_question_that_refers_back_is_answered(client: Client, question: str, following: Case) -> None:
    session = f"s-{uuid.uuid4().hex}"
    await ask(client, question, session)

    assert not fault(following, await ask(client, following.question, session))
