"""A manager whose steps go through the log to workers in other processes."""

from __future__ import annotations

from agentshell.runtime.conclusion import Conclusion
from agentshell.runtime.dispatch import Dispatch, LogDispatch
from agentshell.runtime.history import History
from agentshell.runtime.manager import Manager
from agentshell.runtime.owner import Means
from agentshell.runtime.parking import Parking
from agentshell.runtime.sub_turns import SubTurns
from agentshell.topology.parts import Member, Parts


async def build(parts: Parts) -> Member:
    """Builds a manager without a worker."""
    manager = await new_manager(parts, LogDispatch())
    return Member(start=manager.start, stop=lambda _seconds: manager.stop())


async def new_manager(parts: Parts, dispatch: Dispatch) -> Manager:
    """Returns a manager that hands its steps to `dispatch`."""
    parking = Parking(await parts.database())
    await parking.open()
    conclusion = Conclusion(History(parts.channel("memory")), SubTurns(parts.channel("gateway")), parking)
    return Manager(Means(await parts.log(), dispatch, parking, conclusion, parts.config.runtime))
