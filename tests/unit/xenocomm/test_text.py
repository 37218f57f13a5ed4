"""The text of a turn, folded from its updates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, Image, Message, Part, Passage, Text, Usage
from kfm.error.v1.error_pb2 import ERROR_REASON_PROVIDER_TIMEOUT, Failure
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1 import turn_event_pb2 as e
from kfm.turn.v1.turn_pb2 import MemoryStep, ModelStep, Plan, Step, StepResult
from xenocomm import Answer, Transcript, XenocommError, text_of

_RETRIEVE, _ANSWER = "t1/retrieve", "t1/answer"
_PLAN = Plan(steps=[Step(step_id=_RETRIEVE, memory=MemoryStep()), Step(step_id=_ANSWER, model=ModelStep())])


def said(*texts: str) -> Message:
    return Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text=text)) for text in texts])


def event(**fields: object) -> e.TurnUpdate:
    header = EventHeader(session_id="s1")
    return e.TurnUpdate(event=e.TurnEvent(header=header, turn_id="t1", **fields))  # pyright: ignore[reportArgumentType] - one event by its field's name


def delta(run_id: str, index: int, *texts: str, step_id: str = _ANSWER) -> e.TurnUpdate:
    return e.TurnUpdate(delta=e.OutputDelta(turn_id="t1", step_id=step_id, run_id=run_id, index=index, texts=texts))


def planned() -> Transcript:
    transcript = Transcript()
    transcript.add(event(plan_created=e.PlanCreated(plan=_PLAN)))
    return transcript


@given(st.lists(st.lists(st.text(max_size=5), max_size=5), max_size=4))
def test_the_text_is_what_the_newest_run_has_said(runs: list[list[str]]) -> None:
    transcript = planned()
    for number, texts in enumerate(runs):
        for index, text in enumerate(texts):
            transcript.add(delta(f"run-{number}", index, text))
    spoken = [texts for texts in runs if texts]
    assert transcript.text == "".join(spoken[-1] if spoken else [])


def test_the_result_of_a_step_is_final_whatever_was_streamed() -> None:
    transcript = planned()
    transcript.add(delta("run-1", 0, "a draft", step_id=_RETRIEVE))
    transcript.add(delta("run-2", 0, "Ha"))
    passages = Message(parts=[Part(passage=Passage(text="evidence"))])
    for step_id, output in ((_RETRIEVE, passages), (_ANSWER, said("Hallo"))):
        succeeded = e.StepSucceeded(step_id=step_id, result=StepResult(output=output))
        transcript.add(event(step_succeeded=succeeded))
    assert transcript.texts == {_RETRIEVE: "", _ANSWER: "Hallo"}
    assert transcript.text == "Hallo"
    assert transcript.last_event is None


def test_a_completed_turn_has_its_answer() -> None:
    transcript, usage = planned(), Usage(input_tokens=3, output_tokens=1)
    transcript.add(event(turn_completed=e.TurnCompleted(output=said("It ", "goes on."), usage=usage)))
    assert transcript.text == "It goes on."
    assert Answer.of(transcript.last_event) == Answer("t1", "s1", said("It ", "goes on."), usage)


def test_an_answer_that_is_missing_says_why() -> None:
    timeout = Failure(code=4, reason=ERROR_REASON_PROVIDER_TIMEOUT, message="too slow")  # pyright: ignore[reportArgumentType] - 4 is DEADLINE_EXCEEDED
    endings = [event(turn_failed=e.TurnFailed(failure=timeout)), event(turn_cancelled=e.TurnCancelled(failure=timeout))]
    reasons: list[str] = []
    for ending in (None, *(ending.event for ending in endings)):
        with pytest.raises(XenocommError) as caught:
            Answer.of(ending)
        reasons.append(caught.value.reason)
    assert reasons == ["TURN_STATE", "PROVIDER_TIMEOUT", "PROVIDER_TIMEOUT"]


def test_only_words_are_text() -> None:
    picture = Part(image=Image(media_type="image/png", uri="https://example.org/p.png"))
    assert text_of(Message(parts=[*said("a").parts, picture, *said("b").parts])) == "ab"
