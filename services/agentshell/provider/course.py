"""The course of a call: which endpoint it asks, which next once that failed, and after how long. Pure.

The clock and chance are passed in. Each candidate fails at most `max_attempts` times: it is asked at each of its
endpoints at once, the fittest before the others, and then again where the wait is over first. An endpoint that refuses
the call, whose key is refused, or whose wait is too long, is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from agentshell.mesh.errors import AgentShellError
from agentshell.provider import backoff
from agentshell.provider.backoff import Remedy
from agentshell.provider.endpoint import Endpoint, in_order
from agentshell.provider.routing import Candidate

Clock = Callable[[], float]


class Stage(NamedTuple):
    """A candidate with the endpoints that it can be asked at."""

    candidate: Candidate
    endpoints: Sequence[Endpoint]


class Try(NamedTuple):
    """An attempt that is to be made: where, and after how long."""

    candidate: Candidate
    endpoint: Endpoint
    wait_seconds: float


def course(
    stages: Sequence[Stage], max_attempts: int, deadline: float, clock: Clock, random: Callable[[], float]
) -> Generator[Try, AgentShellError, None]:
    """Yields the next attempt to make, and takes the failure of each. It ends where that failure is the call's."""
    for stage in stages:
        has_others = stage is not stages[-1]
        queue = [(0.0, endpoint) for endpoint in in_order(stage.endpoints, clock(), random)]
        failed = 0
        while queue and failed < max_attempts:
            ready, endpoint = queue.pop(0)
            failure = yield Try(stage.candidate, endpoint, max(0.0, ready - clock()))
            match backoff.remedy(failure.reason):
                case Remedy.NONE:
                    return
                case Remedy.ANOTHER_MODEL:
                    break
                case Remedy.ELSEWHERE:
                    pass
                case Remedy.AGAIN:
                    left = deadline - clock()
                    wait = backoff.wait_seconds(failure.retry_delay, failed, random(), left, has_others=has_others)
                    failed += 1
                    if wait is not None:
                        queue.append((clock() + wait, endpoint))
                        queue.sort(key=_ready)


def _ready(waiting: tuple[float, Endpoint]) -> float:
    return waiting[0]
