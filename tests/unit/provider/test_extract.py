"""The local provider's answers: the sentences that fit, in order, cited; or plainly nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider.extract import extract
from kfm.content.v1 import content_pb2

NOTICE = "*Quoted by the `local` provider, which has no model: the words are the documents' own.*"


def passage(text: str, title: str = "Guide", uri: str = "guide.md", record_id: str = "") -> content_pb2.Passage:
    return content_pb2.Passage(record_id=record_id or title, source_uri=uri, title=title, text=text)


RUN = passage(
    "## Run\n\nThe mesh keeps its state in Postgres. To start the mesh, run:\n\n```\nagentshell up\n```\n\n"
    "Nobody likes cold coffee in the morning. Press ctrl-C to stop the mesh and its Postgres.",
    "Run",
)
TURN = passage("Many words came before this. A turn is one message of a user and all that it sets off.", "Words")
LIST = passage("There are three drivers:\n\n- Postgres, the default\n- Iggy, for production\n- SQLite, to test", "Log")


def test_the_code_that_a_sentence_introduces_comes_with_it_and_the_rest_stays_out() -> None:
    answer = extract(["How do I start the mesh?"], [TURN, RUN])

    assert answer.text == (
        f"To start the mesh, run: [1]\n\n```\nagentshell up\n```\n\nSources:\n\n- [1] Run (guide.md)\n\n{NOTICE}"
    )


def test_a_definition_goes_before_other_mentions() -> None:
    mention = passage("Each turn costs money, and a turn may fail, and a turn may wait.", "Money")

    answer = extract(["What is a turn?"], [mention, TURN])

    assert answer.text.startswith("A turn is one message of a user and all that it sets off. [1]")


def test_what_introduces_a_list_item_comes_with_it() -> None:
    answer = extract(["Which driver is for production?"], [LIST])

    assert answer.text.startswith("There are three drivers:\n\n")
    assert "- Iggy, for production" in answer.text


def test_a_question_of_few_words_borrows_those_of_the_question_before() -> None:
    clock = passage("To stop the clock, press its red button.", "Clock")

    alone = extract(["and how do I stop it?"], [clock, RUN])
    following = extract(["How do I start the mesh?", "and how do I stop it?"], [clock, RUN])

    assert alone.text.startswith("To stop the clock")
    assert "Press ctrl-C to stop the mesh" in following.text
    assert "clock" not in following.text


def test_a_question_of_its_own_words_borrows_nothing() -> None:
    alone = extract(["Which driver stores records for production?"], [LIST, RUN])
    following = extract(["How do I start the mesh?", "Which driver stores records for production?"], [LIST, RUN])

    assert following == alone


def test_each_source_has_one_number_and_each_quotation_its_record() -> None:
    first = passage("The log keeps records for thirty days.", "Log", record_id="r1")
    second = passage("Old records leave the log by ranges of offsets.", "Log", record_id="r2")
    third = passage("Records of the log are bytes.", "Bytes", record_id="r3")

    answer = extract(["How long does the log keep records?"], [first, second, third])

    quoted = [answer.text[c.start_index : c.end_index] for c in answer.citations]
    assert quoted[0] == "The log keeps records for thirty days. [1]"
    assert [c.record_id for c in answer.citations] == ["r1", "r2", "r3"][: len(quoted)]
    assert answer.text.count("Log (guide.md)") == 1


def test_citations_count_code_points() -> None:
    answer = extract(["Where is the café?"], [passage("🌍 The café is in Zürich — near the lake.", "Café")])

    (citation,) = answer.citations
    assert answer.text[citation.start_index : citation.end_index] == "🌍 The café is in Zürich — near the lake. [1]"


def test_a_passage_that_repeats_another_is_quoted_once() -> None:
    twice = [passage("The mesh stops at ctrl-C.", "A"), passage("The mesh stops at ctrl-C.", "B")]

    assert extract(["What stops the mesh?"], twice).text.count("The mesh stops at ctrl-C.") == 1


def test_where_no_passage_fits_it_says_so_and_names_the_nearest() -> None:
    answer = extract(["What is the capital of France?"], [RUN, TURN])

    assert not answer.found
    assert answer.citations == ()
    assert "no model" in answer.text
    assert answer.text.endswith("- Run (guide.md)\n- Words (guide.md)")


def test_without_passages_it_says_what_it_is_and_what_to_do() -> None:
    answer = extract(["Hello!"], [])

    assert not answer.found
    assert "I have no model" in answer.text
    assert "OPENAI_API_KEY" in answer.text


@settings(max_examples=60)
@given(
    questions=st.lists(st.text(max_size=40), max_size=3),
    texts=st.lists(st.text(alphabet="ab cd.\n-#`|:1?é🌍", max_size=120), max_size=4),
)
def test_any_passages_give_one_answer_whose_citations_lie_within_it(questions: list[str], texts: list[str]) -> None:
    passages = [passage(text, f"T{number}") for number, text in enumerate(texts)]

    answer = extract([*questions, "ab cd"], passages)

    assert answer == extract([*questions, "ab cd"], passages)
    for citation in answer.citations:
        assert 0 <= citation.start_index < citation.end_index <= len(answer.text)
    starts = [citation.start_index for citation in answer.citations]
    assert starts == sorted(starts)
