"""What an attempt has used: the vendor's figures if there are any, an estimate only for the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentshell import tokens
from agentshell.provider.metering import Meter
from kfm.content.v1 import content_pb2
from kfm.content.v1.content_pb2 import Usage
from kfm.provider.v1 import provider_service_pb2 as pb

QUESTION = content_pb2.Message(
    role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text=content_pb2.Text(text="What is a mesh of services?"))]
)
GENERATION = pb.Generation(messages=[QUESTION])
READ_TOKENS = tokens.estimate_generation(GENERATION)


def text(words: str) -> pb.GenerationDelta:
    return pb.GenerationDelta(text=words)


def said(input_tokens: int, output_tokens: int) -> pb.GenerationDelta:
    return pb.GenerationDelta(usage=Usage(input_tokens=input_tokens, output_tokens=output_tokens))


def read(*deltas: pb.GenerationDelta) -> Meter:
    meter = Meter(GENERATION)
    for delta in deltas:
        meter.add([delta])
    return meter


def test_only_what_a_reader_sees_is_content() -> None:
    call = pb.GenerationDelta(tool_call=pb.ToolCallDelta(call_id="1", name="find"))
    deltas = [said(1, 1), pb.GenerationDelta(), text("a"), pb.GenerationDelta(reasoning="b"), call]
    meter = Meter(GENERATION)
    assert [meter.add([delta]) for delta in deltas] == [False, False, True, True, True]
    assert meter.characters == 1


def test_what_nothing_came_of_used_nothing() -> None:
    assert read().usage() == Usage()


def test_the_vendors_final_word_counts_alone() -> None:
    final = Usage(input_tokens=7, output_tokens=3, reasoning_tokens=2)
    assert read(said(5, 1), text("some words")).final(pb.GenerateResponse(usage=final)) == final


def test_a_whole_answer_of_a_vendor_that_says_nothing_is_estimated() -> None:
    used = Usage(input_tokens=READ_TOKENS, output_tokens=2, estimated=True)
    assert read(text("some words")).final(pb.GenerateResponse()) == used
    assert read().final(pb.GenerateResponse()) == Usage(input_tokens=READ_TOKENS, estimated=True)


def test_a_cut_answer_is_what_the_vendor_said_last_and_the_estimate_of_what_came_since() -> None:
    cached = pb.GenerationDelta(usage=Usage(input_tokens=50, cached_input_tokens=40, output_tokens=1))
    assert read(cached).usage() == cached.usage
    assert read(text("some words"), said(50, 9)).usage() == Usage(input_tokens=50, output_tokens=9)
    assert read(cached, text("some "), text("words")).usage() == Usage(
        input_tokens=50, cached_input_tokens=40, output_tokens=3, estimated=True
    )


def test_a_cut_answer_of_which_the_vendor_said_nothing_is_estimated_with_what_it_read() -> None:
    call = pb.ToolCallDelta(index=0, call_id="1", name="find", arguments_json='{"q": 1}')
    meter = read(text("some words "), pb.GenerationDelta(reasoning="so"), pb.GenerationDelta(tool_call=call))

    written = tokens.estimate('some words sofind{"q": 1}')
    assert meter.usage() == Usage(input_tokens=READ_TOKENS, output_tokens=written, estimated=True)


PIECES = st.lists(st.text(alphabet="ab \n文?", max_size=6), max_size=12)


@given(PIECES)
def test_however_an_answer_is_cut_into_deltas_it_is_estimated_the_same(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert read(*map(text, pieces)).usage() == read(text(whole)).usage()
    assert read(*map(text, pieces)).characters == len(whole)
