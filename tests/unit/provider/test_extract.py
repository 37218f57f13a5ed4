"""The local provider's answers: the matching passage, quoted in whole blocks and cited; or plainly nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider.extract import extract
from kfm.content.v1.content_pb2 import Citation, Passage

NOTICE = "*Quoted by the `local` provider, which has no model: the words are the documents' own.*"


def passage(text: str, title: str = "Guide", uri: str = "guide.md", record_id: str = "") -> Passage:
    return Passage(record_id=record_id or title, source_uri=uri, title=title, text=text)


RUN = passage(
    "To start the mesh, run:\n\n```\nagentshell up\n```\n\nIt keeps its state\nin Postgres.",
    "Use > Start",
    record_id="r",
)
STOP = passage("Press ctrl-C to stop the mesh.", "Use > Stop")
TURN = passage("A turn is a message and all that it sets off.", "Words > What is a turn?")


def test_a_passage_whose_heading_answers_is_quoted_whole_as_it_stands() -> None:
    answer = extract(["How do I start the mesh?"], [STOP, RUN])

    quoted = "To start the mesh, run:\n\n```\nagentshell up\n```\n\nIt keeps its state\nin Postgres. [1]"
    assert answer.text == f"{quoted}\n\nSources:\n\n- [1] Use > Start (guide.md)\n\n{NOTICE}"
    assert answer.citations == (
        Citation(record_id="r", source_uri="guide.md", title="Use > Start", start_index=0, end_index=len(quoted)),
    )
    assert answer.found


def test_a_heading_that_asks_the_question_goes_before_one_that_asks_more_of_it() -> None:
    limits = passage("A turn may take two minutes, and a turn may fail.", "What limits a turn?")

    assert extract(["What is a turn?"], [limits, TURN]).text.startswith("A turn is a message")


def test_a_heading_goes_before_a_mention_and_the_search_decides_between_equals() -> None:
    mention = passage("The answer of a turn, of any turn, is kept.", "Log")
    other = passage("A turn is a rotation.", "Physics > What is a turn?")

    assert extract(["What is a turn?"], [mention, TURN, other]).text.startswith("A turn is a message")
    assert extract(["What is a turn?"], [mention, other, TURN]).text.startswith("A turn is a rotation")


def test_where_the_heading_says_nothing_only_the_blocks_that_do_are_quoted() -> None:
    notes = passage("Coffee is in the kitchen.\n\nThe retention:\n\n- thirty days\n\nTea is there too.", "Notes")

    answer = extract(["What is the retention?"], [notes])

    assert answer.text.startswith("The retention:\n\n- thirty days [1]\n\nSources:")


def test_rare_words_of_the_question_count_more_than_common_ones() -> None:
    passages = [
        passage(f"The mesh has a {part}.", f"Part {number}") for number, part in enumerate(("log", "gate", "clock"))
    ]

    assert extract(["Has the mesh a clock?"], passages).text.startswith("The mesh has a clock. [1]")


def test_a_passage_that_fits_nearly_as_well_is_quoted_after_the_best_and_listed_once() -> None:
    first = passage("Records stay for thirty days.", "Retention", record_id="r1")
    second = passage("🌍 Records of Zürich stay longer.", "Retention", record_id="r2")

    answer = extract(["What is the retention of records?"], [first, second])

    assert [answer.text[cited.start_index : cited.end_index] for cited in answer.citations] == [
        "Records stay for thirty days. [1]",
        "🌍 Records of Zürich stay longer. [1]",
    ]
    assert [cited.record_id for cited in answer.citations] == ["r1", "r2"]
    assert answer.text.count("Retention (guide.md)") == 1


def test_what_two_passages_share_is_quoted_once() -> None:
    twice = [passage("The mesh stops at ctrl-C.", "A"), passage("The mesh stops at ctrl-C.", "B")]

    assert extract(["What stops the mesh?"], twice).text.count("The mesh stops at ctrl-C.") == 1


def test_of_a_long_passage_the_blocks_with_most_of_the_question_are_quoted_in_their_order() -> None:
    paragraphs = [f"Paragraph {number} is on the log. {'Words. ' * 40}".strip() for number in range(8)]
    paragraphs[2] += " It is about retention."
    paragraphs[6] += " It is about retention, too."

    answer = extract(["How long is the retention of the log?"], [passage("\n\n".join(paragraphs), "Log")])

    quoted = [number for number in range(8) if f"Paragraph {number} " in answer.text]
    assert quoted == [2, 6]
    (cited,) = answer.citations
    assert cited.end_index - cited.start_index <= 900


def test_a_table_that_is_quoted_alone_has_its_mark_at_its_heading() -> None:
    answer = extract(["Which states are there?"], [passage("| State |\n|---|\n| DONE |", "Turns > States")])

    assert answer.text.startswith("States [1]\n\n| State |\n|---|\n| DONE |\n\nSources:")


def test_a_question_of_few_words_looks_to_the_one_before() -> None:
    clock = passage("To stop the clock, press its button.", "Stop")

    alone = extract(["and how do I stop it?"], [clock, STOP])
    following = extract(["How do I start the mesh?", "and how do I stop it?"], [clock, STOP])

    assert alone.text.startswith("To stop the clock")
    assert following.text.startswith("Press ctrl-C to stop the mesh")


def test_a_question_without_words_of_its_own_is_the_one_before() -> None:
    assert extract(["How do I stop the mesh?", "And how?"], [RUN, STOP]).text.startswith("Press ctrl-C")


def test_a_question_of_its_own_words_stands_alone() -> None:
    asked = "Which state does Postgres keep?"

    assert extract(["What is a turn?", asked], [TURN, RUN]) == extract([asked], [TURN, RUN])


def test_where_no_passage_fits_it_says_so_and_names_the_nearest() -> None:
    answer = extract(["What is the capital of France?"], [RUN, passage("A word in capitals.", "Words")])

    assert not answer.found
    assert answer.citations == ()
    assert "no model" in answer.text
    assert answer.text.endswith("\n\n- Use > Start (guide.md)\n- Words (guide.md)")


def test_the_question_before_is_no_answer_to_the_one_asked() -> None:
    assert not extract(["What is a turn?", "And who invented it?"], [TURN]).found


def test_without_passages_it_says_what_it_is_and_what_to_do() -> None:
    answer = extract(["Hello!"], [passage(" \n")])

    assert answer == extract([], [])
    assert not answer.found
    assert "I have no model" in answer.text
    assert "OPENAI_API_KEY" in answer.text


@settings(max_examples=60)
@given(
    questions=st.lists(st.text(alphabet="ab cd", max_size=20), max_size=3),
    parts=st.lists(st.tuples(*[st.text(alphabet="ab cd.\n-#`|:>1?é🌍", max_size=120)] * 2), max_size=4),
)
def test_any_passages_give_one_answer_whose_citations_are_its_quotations(
    questions: list[str], parts: list[tuple[str, str]]
) -> None:
    passages = [passage(text, title) for title, text in parts]

    answer = extract(questions, passages)

    assert answer == extract(questions, passages)
    assert answer.found == bool(answer.citations)
    bounds = [bound for cited in answer.citations for bound in (cited.start_index, cited.end_index)]
    assert bounds == sorted(set(bounds))
    assert all(0 <= bound <= len(answer.text) for bound in bounds)
