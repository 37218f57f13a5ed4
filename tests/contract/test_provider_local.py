"""What the local provider does beyond what all providers do."""

from __future__ import annotations

from tests.contract.provider import PASSAGE, question, refusal, subject_of, text_of

from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb


async def test_the_local_provider_cites_the_passages_it_quotes() -> None:
    async with subject_of("local") as local:
        answer = await local.generate(question())

    (part,) = answer.message.parts
    (citation,) = part.text.citations
    assert part.text.text.startswith("Press ctrl-C to stop the mesh.")
    assert part.text.text[citation.start_index : citation.end_index] == f"{PASSAGE.text} [1]"
    assert (citation.record_id, citation.source_uri, citation.title) == ("r1", "README.md", "Run > Stop")
    assert "- [1] Run > Stop (README.md)" in part.text.text


async def test_the_local_provider_keeps_to_the_limits_of_a_request() -> None:
    parameters = pb.GenerationParameters(max_output_tokens=9, temperature=0.7, top_p=0.5, seed=7)
    async with subject_of("local") as local:
        limited = await local.generate(question(parameters=parameters))
        stopped = await local.generate(question(parameters=pb.GenerationParameters(stop=["It drains"])))

    assert text_of(limited) == "Press ctrl-C to stop the mesh. "
    assert limited.finish_reason == pb.FINISH_REASON_LENGTH
    assert limited.message.parts[0].text.citations[0].end_index == len(text_of(limited))
    assert text_of(stopped) == "Press ctrl-C to stop the mesh. "
    assert stopped.finish_reason == pb.FINISH_REASON_STOP


async def test_the_local_provider_counts_what_its_usage_says() -> None:
    async with subject_of("local") as local:
        answer, count = await local.generate(question()), await local.count(question())

    assert (count.input_tokens, count.estimated) == (answer.usage.input_tokens, False)


async def test_the_local_provider_has_one_model() -> None:
    async with subject_of("local") as local:
        error = await refusal(local.generate(question(model="gpt-6")))

    assert error.reason == error_pb2.ERROR_REASON_MODEL_NOT_FOUND
