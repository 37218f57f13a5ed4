"""The order in which endpoints are tried: by health, and among equals by weight."""

from __future__ import annotations

import random
from collections import Counter
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from agentshell.provider.adapters.adapter import Adapter
from agentshell.provider.breaker import Breaker
from agentshell.provider.endpoint import MOST_REST_SECONDS, Endpoint, Health, in_order, weighted_order
from agentshell.provider.slots import Slots

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 100), st.floats(0, 1, exclude_max=True)), max_size=12)


def endpoint(label: str, weight: int = 1) -> Endpoint:
    # No adapter is called here.
    return Endpoint(label, cast("Adapter", None), weight, Breaker(1, 10.0), Slots(label, 1, 0))


@given(ROWS)
def test_each_endpoint_is_in_the_order_once_and_no_fitter_one_comes_later(rows: list[tuple[int, int, float]]) -> None:
    ranks, weights, chances = ([row[column] for row in rows] for column in range(3))

    order = weighted_order([int(rank) for rank in ranks], [int(weight) for weight in weights], chances)

    assert sorted(order) == list(range(len(rows)))
    assert [ranks[index] for index in order] == sorted(ranks)


def test_among_equals_each_is_first_and_second_in_proportion_to_its_weight() -> None:
    draw, weights, draws = random.Random(7), [1, 2, 5], 20_000  # noqa: S311 - not secret
    orders = [weighted_order([0, 0, 0], weights, [draw.random() for _ in weights]) for _ in range(draws)]

    first = Counter(order[0] for order in orders)
    second = Counter(order[1] for order in orders if order[0] == 2)

    for index, weight in enumerate(weights):
        assert abs(first[index] / draws - weight / 8) < 0.02
    assert abs(second[1] / second.total() - 2 / 3) < 0.02


async def test_those_that_refuse_rest_or_are_full_come_after_the_ready() -> None:
    ready, full, resting, refusing = (endpoint(label) for label in ("ready", "full", "resting", "refusing"))
    await full.slots.take()
    resting.rest(0, 5)
    refusing.breaker.fails(refusing.breaker.ask(0) or 0, 0)
    unfit = [refusing, resting, full, ready]

    assert [each.health(1) for each in unfit] == [Health.REFUSING, Health.RESTING, Health.FULL, Health.READY]
    assert in_order(unfit, 1, lambda: 0.5) == [ready, full, resting, refusing]


def test_a_refusing_endpoint_is_ready_once_it_may_be_tried_so_that_it_is() -> None:
    refusing = endpoint("refusing")
    refusing.breaker.fails(refusing.breaker.ask(0) or 0, 0)
    assert [refusing.health(now) for now in (9.9, 10)] == [Health.REFUSING, Health.READY]

    assert refusing.breaker.ask(10) is not None
    assert refusing.health(10) is Health.REFUSING, "one call tries, and others need not wait for it"


def test_a_rest_is_bounded_and_the_longest_counts() -> None:
    resting = endpoint("resting")
    resting.rest(0, 1e9)
    resting.rest(0, 1)
    assert [resting.health(now) for now in (MOST_REST_SECONDS - 1, MOST_REST_SECONDS)] == [Health.RESTING, Health.READY]
