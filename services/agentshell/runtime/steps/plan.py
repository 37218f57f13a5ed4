"""The step that has a model write the steps that follow."""

from __future__ import annotations

import asyncio

import grpc.aio

from agentshell.content import add_usage, text_of
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime import prompt
from agentshell.runtime.steps import draft
from agentshell.runtime.steps.sources import Sources
from agentshell.runtime.steps.step import Emit
from kfm.content.v1.content_pb2 import Usage
from kfm.error.v1 import error_pb2
from kfm.provider.v1.provider_service_pb2 import GenerateRequest
from kfm.provider.v1.provider_service_pb2_grpc import ProviderServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest
from kfm.turn.v1.turn_pb2 import StepResult

_MAX_MENDS = 2


class PlanRunner:
    """Asks a model for a plan, and to correct it, until it can be run. Its output is the plan's JSON."""

    def __init__(self, provider: grpc.aio.Channel, sources: Sources, max_context_tokens: int) -> None:
        self._provider = ProviderServiceStub(provider)
        self._sources = sources
        self._max_context_tokens = max_context_tokens

    async def run(self, request: StepRequest, emit: Emit) -> StepResult:
        personality, history = await asyncio.gather(self._sources.personality(request), self._sources.history(request))
        tools = await self._sources.tools(personality)
        generation = prompt.assemble(
            request,
            personality,
            history,
            max_tokens=self._max_context_tokens,
            addition=draft.instructions(tools),
        )
        step, usage = request.step, Usage()
        usage.cost.currency_code = "USD"
        max_steps = max(0, min(draft.MAX_STEPS, request.remaining_step_count - 1))
        problems: list[str] = []
        for mends in range(1 + _MAX_MENDS):
            # Written steps' ids are the step's id, `#` and a name, so they cannot equal a correction's key.
            request_id = f"{step.step_id}~mend{mends}" if mends else step.step_id
            answer = await self._provider.Generate(
                GenerateRequest(generation=generation, request_id=request_id, purpose=prompt.purpose_of(request))
            )
            add_usage(usage, answer.usage)
            try:
                written = draft.parse(text_of(answer.message))
                problems = draft.problems(written, tools, max_steps)
            except ValueError as error:
                written, problems = None, [str(error)]
            if not problems:
                prefix = f"{step.step_id.removeprefix(f'{request.turn_id}/')}#"
                plan = draft.plan_of(written, step.plan.model, prefix)
                return StepResult(
                    output=answer.message, plan=plan, usage=usage, provider=answer.provider, model=answer.model
                )
            generation.messages.extend([answer.message] if answer.message.parts else [])
            generation.messages.append(draft.mend(problems))
        raise AgentShellError(
            error_pb2.ERROR_REASON_PLAN_INVALID,
            f"the model's plan cannot be run, even after {_MAX_MENDS} repairs: {'; '.join(problems)}; "
            "use another model, or give the plan",
            metadata={"step_id": step.step_id},
        )
