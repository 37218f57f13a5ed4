"""The course of a call: which endpoint to ask first, which next after a failure, and after how long. Pure.

The clock and randomness are passed in. Each candidate may fail transiently up to `max_attempts` times: its endpoints
are tried without a wait, fittest first, and then again in the order in which their waits end. An endpoint that refuses
the call, whose key is refused, or whose wait would be too long, is not tried again.
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
    """A candidate and the endpoints at which it can be asked."""

    candidate: Candidate
    endpoints: Sequence[Endpoint]


class Try(NamedTuple):
    """An attempt to make: where, and after how long."""

    candidate: Candidate
    endpoint: Endpoint
    wait_seconds: float


def course(
    stages: Sequence[Stage], max_attempts: int, deadline: float, clock: Clock, random: Callable[[], float]
) -> Generator[Try, AgentShellError, None]:
    """Yields each attempt to make, and is sent its failure. Ends when no further attempt is worthwhile."""
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
