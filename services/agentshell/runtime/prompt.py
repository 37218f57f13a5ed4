"""What a model is asked, from all that bears on it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kfm.content.v1.content_pb2 import ROLE_SYSTEM, ROLE_USER, Message, Part, Passage, Text
from kfm.personality.v1.personality_service_pb2 import Personality
from kfm.provider.v1.provider_service_pb2 import Generation
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import ModelChoice

# What is searched for, of each question.
_MAX_QUERY_CHARACTERS = 4096
# A question of few words that begins or stands in for what was said before does not say all that it asks about.
_FEW_WORDS = 8
_REFERS_BACK = re.compile(
    r"^\W*(?:and|but|or|so|then|what about)\b|\b(?:it|its|they|them|their|this|that|these|those|one|ones)\b",
    re.IGNORECASE,
)


def assemble(request: StepRequest, personality: Personality, history: Sequence[Message]) -> Generation:
    """Returns what to ask: the personality's prompt, the history, then the input with its passages before it."""
    choice = choose(request.step.model.model, request.model, personality.model)
    system = "\n\n".join(filter(None, (personality.system_prompt, request.step.model.instructions)))
    asked = Message(role=ROLE_USER, parts=[*_passages(request), *request.input.parts])
    messages = [*history, asked]
    if system:
        messages.insert(0, Message(role=ROLE_SYSTEM, parts=[Part(text=Text(text=system))]))
    return Generation(provider=choice.provider, model=choice.model, messages=messages)


def choose(*choices: ModelChoice) -> ModelChoice:
    """Returns the first choice that names a provider, with the first model named for it or before it."""
    model = ""
    for choice in choices:
        model = model or choice.model
        if choice.provider:
            return ModelChoice(provider=choice.provider, model=model)
    return ModelChoice(model=model)


def refers_back(question: str) -> bool:
    """Returns whether a question is likely to be about what was asked before, such as "And how do I stop it?"."""
    return len(question.split()) <= _FEW_WORDS and bool(_REFERS_BACK.search(question))


def search_query(question: str, history: Sequence[Message] = ()) -> str:
    """Returns what to search memory for: the user's last message in the history, if there is one, and the question."""
    asked = [text_of(message) for message in history if message.role == ROLE_USER][-1:]
    return "\n".join(text[:_MAX_QUERY_CHARACTERS] for text in (*asked, question))


def text_of(message: Message) -> str:
    """Returns the words of a message."""
    return "\n".join(part.text.text for part in message.parts if part.HasField("text"))


def _passages(request: StepRequest) -> Iterable[Part]:
    for name, output in zip(request.step.depends_on, request.dependencies, strict=True):
        for part in output.parts:
            if part.HasField("passage"):
                yield part
            elif part.HasField("text"):
                yield Part(passage=Passage(title=f"Output of step {name}", text=part.text.text))
