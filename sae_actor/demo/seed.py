"""What the demo puts into an empty log: the bundled SAE, the small model, and the one attached to the other."""

from __future__ import annotations

import asyncio
import sys

from ..actor import Actor
from ..config import Settings, demo_model_folder
from ..domain.commands import Attach, Command, Import, LoadModel
from ..domain.projections import waiting_for
from ..domain.refs import import_id_of
from ..errors import SAEError, from_code
from . import SAE_FOLDER, curl_lines
from .model import NAME

PRINCIPAL = "demo"
PATIENCE_SECONDS = 600.0


async def seed(actor: Actor, settings: Settings, url: str, *, fresh: bool) -> None:
    """Fill an empty log, wait until everything is in place, and say how to go on. Raises what went wrong."""
    sae_id = import_id_of(str(SAE_FOLDER.resolve()))
    if fresh:
        print("loading the model and attaching the SAE …", file=sys.stderr)
        model = demo_model_folder(settings) / NAME
        await _done(actor, LoadModel(model=str(model), dtype=settings.model.dtype, device=settings.model.device))
        await _done(actor, Import(path=str(SAE_FOLDER.resolve())))
        await _done(actor, Attach(sae_id=sae_id))
    else:
        while waiting_for(actor.state):
            await asyncio.sleep(0.05)
    attached = actor.state.attachment(sae_id)
    if attached is None:
        raise SAEError("the demo's SAE is not attached; GET /ready and GET /api/saes say more")
    print(f"ready: {sae_id} on {attached.hook_point} of {NAME}\n", flush=True)
    print("\n\n".join(curl_lines(url, sae_id)), flush=True)


async def _done(actor: Actor, command: Command) -> None:
    accepted = await actor.submit(command, principal=PRINCIPAL)
    outcome = await actor.outcome(accepted.command_id, PATIENCE_SECONDS)
    if outcome.error is not None:
        raise from_code(outcome.error.code, outcome.error.detail, **outcome.error.fields)
