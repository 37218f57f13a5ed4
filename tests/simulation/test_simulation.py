"""Whatever goes wrong, in whatever order: every turn ends, and all readers of its log agree on what happened.

The long form is `python -m tests.simulation --examples 1000000`.
"""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.simulation.__main__ import run_all
from tests.simulation.world import World

_SCHEDULES = 1500


def test_thousands_of_schedules_keep_what_the_engine_promises() -> None:
    counts, broken = run_all(range(_SCHEDULES))
    assert broken == []
    assert counts["schedules"] == _SCHEDULES
    assert min(counts[end] for end in ("completed", "failed", "cancelled")) > _SCHEDULES // 30, "all ends are reached"


class Schedules(RuleBasedStateMachine):
    """The same world, driven by hypothesis, which finds the shortest schedule that fails."""

    @initialize(random=st.randoms(use_true_random=False), one_owner=st.booleans())
    def begin(self, random: Random, one_owner: bool) -> None:
        self.world = World(random, one_owner=one_owner)

    @rule()
    def an_owner_acts(self) -> None:
        self.world.own()

    @rule()
    def an_owner_acts_again(self) -> None:
        self.world.own()

    @rule()
    def a_worker_works(self) -> None:
        self.world.work()

    @rule()
    def somebody_answers(self) -> None:
        self.world.provide()

    @rule()
    def somebody_asks(self) -> None:
        self.world.ask()

    @rule()
    def somebody_cancels(self) -> None:
        self.world.cancel()

    @rule()
    def time_passes(self) -> None:
        self.world.pass_time()

    @rule()
    def another_takes_over(self) -> None:
        self.world.take_over()

    @rule()
    def an_owner_crashes(self) -> None:
        self.world.crash()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.conclude()


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
