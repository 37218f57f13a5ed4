"""The local provider: no model, no key, no network. Quotes the passages of the request and says so.

Deterministic: a request has one answer, at any temperature and seed. For demos, tests and offline work.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence

from agentshell import tokens
from agentshell.provider import extract
from agentshell.provider.adapters.adapter import Access, Deltas, no_model, unsupported
from agentshell.provider.adapters.answer import Answer
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

_MODEL = "extract"
_WORD = re.compile(r"\S+\s*|\s+")
_WORD_GROUP = re.compile(r"(?:\S+\s*){1,4}|\s+")


class LocalAdapter:
    """Answers by extraction. Its token counts are exactly the estimator's, and cost nothing."""

    default_model = _MODEL
    abilities = frozenset(
        {pb.ABILITY_TEMPERATURE, pb.ABILITY_TOP_P, pb.ABILITY_STOP, pb.ABILITY_SEED, pb.ABILITY_TOKEN_COUNT}
    )

    def __init__(self, access: Access) -> None:
        self._provider = access.provider

    async def stream(self, generation: pb.Generation, model: str) -> AsyncGenerator[Deltas | pb.GenerateResponse]:
        """Yields the answer in groups of words, and then the whole answer with its citations."""
        self._check(model)
        found = extract.extract(_questions(generation.messages), _passages(generation.messages))
        text, reason = _limit(found.text, generation.parameters)
        answer = Answer(self._provider)
        for group in _WORD_GROUP.findall(text):
            answer.text(group)
            yield answer.take()
        usage = content_pb2.Usage(
            input_tokens=tokens.estimate_generation(generation), output_tokens=tokens.estimate(text)
        )
        response = answer.finish(_MODEL, reason, usage)
        response.message.parts[0].text.citations.extend(_within(found.citations, len(text)))
        yield response

    async def embed(self, texts: Sequence[str], model: str, dimension: int) -> pb.EmbedResponse:
        """Raises FEATURE_UNSUPPORTED: memory has an embedder of its own."""
        raise unsupported(self._provider, "embeddings")

    async def moderate(self, texts: Sequence[str], model: str) -> pb.ModerateResponse:
        """Raises FEATURE_UNSUPPORTED."""
        raise unsupported(self._provider, "moderation")

    async def count_tokens(self, generation: pb.Generation, model: str) -> pb.CountTokensResponse:
        """Returns what an answer's usage will report."""
        self._check(model)
        read = tokens.estimate_generation(generation)
        return pb.CountTokensResponse(input_tokens=read, provider=self._provider, model=_MODEL)

    async def close(self) -> None:
        """Has nothing to close."""

    def _check(self, model: str) -> None:
        if model != _MODEL:
            raise no_model(self._provider, model)


def _questions(messages: Sequence[content_pb2.Message]) -> list[str]:
    users = (message for message in messages if message.role == content_pb2.ROLE_USER)
    texts = ("\n".join(part.text.text for part in message.parts if part.HasField("text")) for message in users)
    return [text for text in texts if text.strip()]


def _passages(messages: Sequence[content_pb2.Message]) -> list[content_pb2.Passage]:
    """Returns the passages, those of the latest message first: they were retrieved for the latest question."""
    found = (part.passage for m in reversed(messages) for part in m.parts if part.HasField("passage"))
    return list({(passage.record_id, passage.text): passage for passage in found}.values())


def _limit(text: str, parameters: pb.GenerationParameters) -> tuple[str, pb.FinishReason.ValueType]:
    """Cuts the answer off where a stop text begins, and before the word that would exceed the limit."""
    ends = [at for at in (text.find(stop) for stop in parameters.stop if stop) if at >= 0]
    text = text[: min(ends, default=len(text))]
    if not parameters.HasField("max_output_tokens") or tokens.estimate(text) <= parameters.max_output_tokens:
        return text, pb.FINISH_REASON_STOP
    kept, left = "", parameters.max_output_tokens
    for word in _WORD.findall(text):
        left -= tokens.estimate(word)
        if left < 0:
            break
        kept += word
    return kept, pb.FINISH_REASON_LENGTH


def _within(citations: Sequence[content_pb2.Citation], end: int) -> list[content_pb2.Citation]:
    """Returns the citations for the text that is left."""
    kept = [citation for citation in citations if citation.start_index < end]
    for citation in kept:
        citation.end_index = min(citation.end_index, end)
    return kept
