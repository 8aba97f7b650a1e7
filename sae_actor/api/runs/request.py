"""A `Run` as it is put on record: its spec checked, its texts on disk, strengths of its variants raw."""

from __future__ import annotations

import uuid

import msgspec

from ...actor import Accepted, accepted_events, command_id_of
from ...domain.commands import DeleteRun, RequestRun, Run
from ...domain.events import RunKind, RunRequested
from ...domain.measuring.specs import EvaluateSpec, ProfileSpec
from ...domain.rules.admission import attached_sae
from ...domain.rules.attachments import loaded_model
from ...domain.rules.edits import needs_encoder
from ...domain.state import State
from ...errors import BadRequestError
from ...runs.pooled import refuse_few
from ...runs.runs import described
from ..answers import state_of
from ..context import context, principal
from ..requests import idempotency_key, wait_seconds
from ..submission import awaited, last, submit
from ..types import Answer, AnyRequest
from .contrasts import asked_contrast
from .sources import AskedRun, TextsSource, as_asked
from .sweeps import asked_sweep

SPECS: dict[RunKind, type[EvaluateSpec | ProfileSpec]] = {"evaluate": EvaluateSpec, "profile": ProfileSpec}


async def requested(request: AnyRequest, command: Run) -> RequestRun:
    """Raises `BadRequestError`, what the rules refuse it with, `TextsNotFoundError`, `ForbiddenError`."""
    loaded_model(state_of(request))
    if command.kind == "sweep":
        asked = await asked_sweep(request, command.spec)
    elif command.kind == "contrast":
        asked = asked_contrast(request, command.spec)
    else:
        asked = _asked_reading(request, command)
    runs, run_id = context(request).runs, f"run-{uuid.uuid4().hex[:12]}"
    try:
        kept = await runs.keep(run_id, asked.lists)
        for role, (count, _) in kept.items():
            if count == 0:
                raise BadRequestError(f"{role}: there is no text", param=f"spec.{role}")
        if command.kind == "contrast":
            refuse_few(kept["positive"][0], kept["negative"][0], asked.spec["held_out"])
    except BaseException:
        await runs.erase(run_id)
        raise
    return RequestRun(
        run_id=run_id,
        kind=command.kind,
        spec=asked.spec,
        name=command.name,
        read=asked.read,
        texts=described(kept, asked.origins),
        variants=asked.variants,
        seeds=asked.seeds,
        asked_sha256=command.digest(),
    )


def _asked_reading(request: AnyRequest, command: Run) -> AskedRun:
    spec = dict(command.spec)
    source = as_asked(spec.pop("texts", None), TextsSource, "spec.texts")
    checked = as_asked(spec, SPECS[command.kind], "spec")
    readable(state_of(request), checked.sae_id, command.kind)
    return AskedRun(
        spec=msgspec.to_builtins(checked),
        lists={"texts": source.items(request)},
        origins={"texts": source.origin},
        read=(checked.sae_id,),
    )


def readable(state: State, sae_id: str, kind: str) -> None:
    """As the rules check again, before anything is written."""
    attached_sae(state, sae_id, ())
    if (sae := state.saes[sae_id].sae) is not None:
        needs_encoder(sae, sae_id, f"a run of kind {kind}")


async def accept_run(request: AnyRequest, command: Run) -> Answer:
    """Accept a run. The texts of one that is refused, or repeats an earlier one under its key, are erased again."""
    seconds = wait_seconds(request)
    if (earlier := await _accepted_before(request, command)) is not None:
        return await awaited(request, earlier, seconds, run_id=last(earlier.events, RunRequested)[0].run_id)
    wanted = await requested(request, command)
    runs, run_id = context(request).runs, ""
    try:
        accepted = await submit(request, wanted)
        run_id = last(accepted.events, RunRequested)[0].run_id
    finally:
        if run_id != wanted.run_id:
            await runs.erase(wanted.run_id)
    return await awaited(request, accepted, seconds, run_id=run_id)


async def _accepted_before(request: AnyRequest, command: Run) -> Accepted | None:
    """What was accepted under its key. Its texts may have gone since, its SAE been detached: nothing is looked at."""
    key = idempotency_key(request)
    if key is None or not await accepted_events(context(request).log, command_id_of(principal(request), key)):
        return None
    return await submit(request, RequestRun(run_id="run", kind=command.kind, spec={}, asked_sha256=command.digest()))


async def delete_run(request: AnyRequest, command: DeleteRun) -> Answer:
    """Answered once the texts and rows are gone."""
    run = state_of(request).runs.get(command.run_id)
    accepted = await submit(request, command)
    if run is not None:
        await context(request).actor.effect_ended("run", run.request_position)
    if command.run_id not in state_of(request).runs:
        await context(request).runs.erase(command.run_id)
        await context(request).features.catch_up()
    return await awaited(request, accepted, wait_seconds(request), run_id=command.run_id)
