"""The demo's contents for an empty log: the small model with the bundled SAE attached."""

from __future__ import annotations

import sys
from pathlib import Path

from ..actor import Actor
from ..domain.commands import Attach, Command, Import, LoadModel
from ..domain.evolve import COMMAND_OF_INTENT
from ..domain.views.resources import waiting_for
from ..domain.weights import import_id_of
from ..errors import IdempotencyKeyReusedError, SAEError, from_code
from ..ports import EventLog
from . import TITLES, curl_lines, way_back
from .model import NAME

PRINCIPAL = "demo"
PATIENCE_SECONDS = 600.0


async def seed(actor: Actor, log: EventLog, model: LoadModel, url: str, sae: Path, *, token: bool) -> None:
    """Fill an empty log (or continue after a killed demo), wait until everything is in place, and print what to do
    next. `model`: the prepared one; `sae`: the SAE's folder, resolved; `token`: the service requires one. Any other
    log is served as it is. Raises the error of a failed command.
    """
    sae_path = str(sae)
    first = await log.read(0, 1, [intent.__name__ for intent in COMMAND_OF_INTENT])
    if not first or first[0].principal == PRINCIPAL:
        print("loading the model and attaching the SAE …", file=sys.stderr)
        # Each under a key of its own: done once in the life of the log, whatever its user does afterwards.
        await _once(actor, "demo-model", model)
        await _once(actor, "demo-import", Import(path=sae_path))
        await _once(actor, "demo-attach", Attach(sae_id=await _id_of(actor, sae_path)))
    await _in_place(actor)
    sae_id = await _id_of(actor, sae_path)
    attached = actor.state.attachment(sae_id)
    if attached is None:
        print("ready; the demo's SAE is not attached. To attach it again:\n", flush=True)
        print("\n".join(way_back(url, sae_id, sae, known=sae_id in actor.state.saes, token=token)), flush=True)
        return
    print(f"ready: {sae_id} on {attached.hook_point} of {NAME}\n", flush=True)
    for title, line in zip(TITLES, curl_lines(url, sae_id, token=token), strict=True):
        print(f"{title}\n{line}\n", flush=True)
    print(f"The same in a browser: {url}/", flush=True)
    print("Ctrl-C stops it; the next start restores everything.", flush=True)


async def _id_of(actor: Actor, path: str) -> str:
    """The id of the demo's SAE on record; of one that is not on record the one that it would get."""
    records = actor.state.saes.values()
    known = next((each.sae_id for each in records if (each.source, each.path) == ("import", path)), None)
    return known or import_id_of(path, digest=await actor.performer.hub.import_digest(path))


async def _once(actor: Actor, key: str, command: Command) -> None:
    known = actor.state.position
    try:
        accepted = await actor.submit(command, principal=PRINCIPAL, key=key)
    except IdempotencyKeyReusedError:
        return  # done by a demo with other settings, or whose folders were elsewhere; the log is served as it is
    outcome = await actor.outcome(accepted.command_id, PATIENCE_SECONDS, accepted)
    if outcome.error is not None and accepted.position <= known:
        # An earlier start failed at this; what was in its way may be gone.
        accepted = await actor.submit(command, principal=PRINCIPAL)
        outcome = await actor.outcome(accepted.command_id, PATIENCE_SECONDS, accepted)
    if outcome.error is not None:
        raise from_code(outcome.error.code, outcome.error.detail, **outcome.error.fields)
    if outcome.status == "accepted":
        raise SAEError(f"{command.type_name} did not end within {PATIENCE_SECONDS:.0f} seconds")


async def _in_place(actor: Actor) -> None:
    """Return when nothing is waited for any more."""
    if waiting_for(actor.state):
        async for _ in actor.broadcast.read(actor.broadcast.head):
            if not waiting_for(actor.state):
                return
