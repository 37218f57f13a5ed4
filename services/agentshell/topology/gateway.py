"""The gateway: the services that clients call, and the turn index behind them."""

from __future__ import annotations

from functools import partial

from agentshell.gateway.admin_service import AdminService
from agentshell.gateway.backlog import Backlog
from agentshell.gateway.projector import Projector
from agentshell.gateway.service import TurnService
from agentshell.gateway.turn_index import TurnIndex
from agentshell.log.lag import Lag
from agentshell.topology.parts import Member, Parts
from agentshell.turn import envelope
from kfm.admin.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from kfm.turn.v1.turn_service_pb2_grpc import add_TurnServiceServicer_to_server

# The groups whose lag is measured.
_GROUPS = (
    (envelope.TURNS, envelope.MANAGERS),
    (envelope.TURNS, envelope.GATEWAYS),
    (envelope.STEPS, envelope.WORKERS),
)


async def build(parts: Parts) -> Member:
    """Builds the Turn and Admin services, with the tasks that keep the turn index current and measure lag."""
    log, database, config = await parts.log(), await parts.database(), parts.config
    index = await TurnIndex.open(database, has_log=config.log.driver == "postgres")
    projector, lag = Projector(log, index), Lag(log, _GROUPS)
    backlog = Backlog(database, config.runtime)
    admin = AdminService(log, index, [envelope.TURNS, envelope.STEPS])
    partitions = config.log.partitions_of(envelope.TURNS)
    service = TurnService(log, index, backlog, parts.channel("personality"), config.runtime, partitions)
    return Member(
        {
            "kfm.turn.v1.TurnService": partial(add_TurnServiceServicer_to_server, service),
            "kfm.admin.v1.AdminService": partial(add_AdminServiceServicer_to_server, admin),
        },
        background=[projector.run, lag.run],
    )
