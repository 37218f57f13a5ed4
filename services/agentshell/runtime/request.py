"""What a worker is asked to do. Pure."""

from __future__ import annotations

from datetime import timedelta

from agentshell.mesh.config import RuntimeConfig
from agentshell.turn import envelope
from kfm.turn.v1.turn_event_pb2 import StepRequest, TurnEvent
from kfm.turn.v1.turn_pb2 import Turn


def step_request(turn: Turn, scheduled: TurnEvent, config: RuntimeConfig) -> StepRequest:
    """Returns what a worker needs to make the attempt that `scheduled` decided on."""
    steps = {step.step_id: step for step in turn.plan.steps}
    step, start = steps[scheduled.step_scheduled.step_id], scheduled.header.time.ToDatetime()
    request = StepRequest(
        turn_id=turn.turn_id,
        step=step,
        attempt=scheduled.step_scheduled.attempt,
        input=turn.input,
        dependencies=[steps[name].result.output for name in step.depends_on],
        personality_id=turn.personality_id,
        personality_digest=turn.personality_digest,
        model=turn.model,
        principal_id=turn.principal_id,
    )
    envelope.follow(request.header, scheduled.header)
    envelope.begin(request.header, scheduled.header.event_id, StepRequest.DESCRIPTOR.full_name)
    if scheduled.step_scheduled.HasField("start_delay"):
        start += scheduled.step_scheduled.start_delay.ToTimedelta()
        request.start_time.FromDatetime(start)
    limit = step.timeout.ToTimedelta() if step.HasField("timeout") else timedelta(seconds=config.step_seconds)
    end = turn.create_time.ToDatetime() + turn.limits.max_duration.ToTimedelta()
    request.deadline.FromDatetime(min(start + limit, end))
    return request
