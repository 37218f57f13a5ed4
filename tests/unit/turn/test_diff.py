"""What one turn did differently from another."""

from tests.unit.turn.driver import UNAVAILABLE, Driver, fails, noop, request, says

from agentshell.cli.diff import compared, folded
from kfm.turn.v1 import turn_pb2 as t


def told(a: t.Turn, b: t.Turn) -> list[str]:
    return [line for is_same, line in compared(a, b) if not is_same]


def turn(*steps: t.Step, turn_id: str = "T", **answers: str) -> t.Turn:
    driver = Driver(request(*steps), lambda step: says(answers.get(step.step_id.removeprefix("T/"), "same")))
    driver.run()
    made = folded(driver.events)
    for step in made.plan.steps:
        step.step_id = step.step_id.replace("T/", f"{turn_id}/")
    made.turn_id = turn_id
    return made


def test_turns_that_did_the_same_are_the_same_whatever_their_ids_and_times() -> None:
    other = turn(noop("a"), turn_id="other")
    other.plan.steps[0].end_time.seconds += 5
    lines = list(compared(turn(noop("a")), other))
    assert lines == [(True, "same       a  (1 | 5001 ms)"), (True, "same       the turn")]


def test_each_difference_is_told_by_the_name_of_its_step() -> None:
    a = turn(noop("both"), noop("old"), noop("end"), both="one\ntwo\nthree", end="x")
    b = turn(noop("both"), noop("new"), noop("end"), both="one\nTWO\nthree", end="x")
    assert told(a, b) == [
        "differs    both  (3 | 3 ms)",
        "    output:",
        "        --- A",
        "        +++ B",
        "        @@ -1,3 +1,3 @@",
        "         one",
        "        -two",
        "        +TWO",
        "         three",
        "only in A  old",
        "only in B  new",
    ]


def test_states_attempts_failures_usage_and_the_end_are_compared() -> None:
    failing = Driver(request(noop("a")), lambda _: fails(UNAVAILABLE))
    failing.run()
    lines = told(turn(noop("a"), a="done"), folded(failing.events))
    assert lines[:6] == [
        "differs    a  (1 | 1 ms)",
        "    state: SUCCEEDED | FAILED",
        "    attempts: 1 | 3",
        "    failure: none | down",
        "    tokens: 1 + 1 | none",
        "    cost: 0.000001 USD | none",
    ]
    assert "    state: COMPLETED | FAILED" in lines[6:]


def test_a_long_difference_is_cut() -> None:
    a, b = ("\n".join(f"{word} {number}" for number in range(100)) for word in ("old", "new"))
    lines = told(turn(noop("a"), a=a), turn(noop("a"), a=b))
    assert sum("more lines" in line for line in lines) == 2, "of the step, and of the turn"
    assert len(lines) < 100
