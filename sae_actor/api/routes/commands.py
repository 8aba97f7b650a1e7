"""`/api/commands`: every command, and its outcome."""

from __future__ import annotations

from ...domain.commands import AnyCommand, Download
from ..context import context
from ..operations import operation
from ..requests import body_of, wait_seconds
from ..submission import EXAMPLES, REFUSALS, CommandOutcome, accept, answered, outcome_view, placed
from ..types import Answer, AnyRequest


@operation(
    "POST", "/api/commands", "Send a command",
    body=AnyCommand, answers=((202, "application/json"), (200, "application/json")), returns=CommandOutcome,
    examples=EXAMPLES, errors=(*REFUSALS, "not_found", "sae_ambiguous"), command=True, tag="commands",
)  # fmt: skip
async def post_command(request: AnyRequest) -> Answer:
    command: AnyCommand = await body_of(request, AnyCommand)
    if isinstance(command, Download):
        command = await placed(request, command)
    return await accept(request, command)


@operation("GET", "/api/commands/{command_id}", "The outcome of a command; `Prefer: wait=N` waits for it",
           returns=CommandOutcome, waits=True, errors=("not_found",), tag="commands")  # fmt: skip
async def get_command(request: AnyRequest) -> Answer:
    seconds = wait_seconds(request)
    outcome = await context(request).actor.outcome(request.path_params["command_id"], seconds or 0)
    response = answered(request, outcome_view(outcome), upto=outcome.events[-1].position)
    if seconds is not None:
        response.headers["preference-applied"] = f"wait={seconds}"
    return response
