"""The maximum number of tokens in a request."""

from __future__ import annotations

from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from agentshell import tokens
from agentshell.provider import token_bound
from kfm.content.v1.content_pb2 import ROLE_USER, Image, Message, Part, Passage, Text, ToolCall, ToolResult
from kfm.provider.v1 import provider_service_pb2 as pb

texts = st.text(max_size=200)
parts = st.one_of(
    texts.map(lambda text: Part(text=Text(text=text))),
    texts.map(lambda text: Part(passage=Passage(text=text, title=text, source_uri=text))),
    texts.map(lambda text: Part(tool_call=ToolCall(call_id="c", name=text))),
    texts.map(lambda text: Part(tool_result=ToolResult(call_id="c", output=struct_pb2.Value(string_value=text)))),
    st.just(Part(image=Image(media_type="image/png", data=b"png"))),
)


@given(st.lists(parts, min_size=1, max_size=8), st.lists(texts, max_size=3))
def test_no_estimate_is_above_the_bound(said: list[Part], tools: list[str]) -> None:
    generation = pb.Generation(
        messages=[Message(role=ROLE_USER, parts=said)],
        tools=[pb.ToolDefinition(name="t", description=text) for text in tools],
    )
    assert tokens.estimate_generation(generation) <= token_bound.of_generation(generation)


def test_a_text_has_no_more_tokens_than_bytes_and_a_frame() -> None:
    assert token_bound.of_texts(["abc", "日本"]) == 3 + 6 + 2 * 16
