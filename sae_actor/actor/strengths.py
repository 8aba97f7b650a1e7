"""Strengths in units of an SAE, resolved to raw ones before the rules see them: decisions and log use raw strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from ..domain.commands import Command, Import, RequestedIntervention, SavePreset, Steer
from ..domain.messages import AdmitGeneration, Message, OwnIntervention, ResolvedPreset, WeighedImport
from ..domain.refs import MAX_STRENGTH, Edit
from ..domain.rules.admission import meant
from ..domain.rules.presets import weights_now
from ..domain.state import State
from ..errors import BadRequestError, SAEError
from ..limits import in_turns
from ..ports import Engine, Hub

R = TypeVar("R", AdmitGeneration, OwnIntervention)


async def raw_command(command: Command, state: State, engine: Engine, hub: Hub) -> Message | None:
    """The command as the rules take it, with raw strengths or the digest of what is imported; None if it is that
    already. If an SAE is not there, it is unchanged: the rules refuse it.

    Raises what `Engine.raw` raises, `BadRequestError` if a raw strength is out of bounds; for a preset what
    `Hub.locate` raises too.
    """
    match command:
        case Steer():
            features = await _raw(command.features, command.sae_id, state, engine)
            return None if features is command.features else replace(command, features=features)
        case Import():
            digest = await hub.import_digest(command.path, command.layer)
            return None if digest is None else WeighedImport(command=command, digest=digest)
        case SavePreset():
            return await _raw_preset(command, state, engine, hub)
        case _:
            return None


async def raw_request(request: R, state: State, engine: Engine) -> R:
    """The request with raw strengths; raises as `raw_command`."""
    if request.steering:
        steering = await _raw(request.steering, None, state, engine)
        request = request if steering is request.steering else replace(request, steering=steering)
    if request.interventions:
        own = [(each, await _raw(each.steering, each.sae_id, state, engine)) for each in request.interventions]
        if any(edits is not each.steering for each, edits in own):
            request = replace(request, interventions=tuple(replace(each, steering=edits) for each, edits in own))
    if request.preset is not None and (preset := state.presets.get(request.preset)) is not None:
        for sae in preset.interventions:
            # Raw already; in half precision they may be too large.
            await _raw(sae.steering, sae.sae_id, state, engine)
    return request


async def _raw_preset(command: SavePreset, state: State, engine: Engine, hub: Hub) -> ResolvedPreset | None:
    strengths, weights = [], []
    for each in command.interventions:
        try:
            digest, _ = weights_now(state, each.sae_id)
        except SAEError:
            return None  # as the rules say it
        if state.attachment(each.sae_id) is not None:
            edits = await _raw(each.steering, each.sae_id, state, engine)
        else:
            edits = await _raw_on_disk(each, state, engine, hub)
        strengths.append(edits)
        weights.append(digest)
    return ResolvedPreset(command=command, strengths=tuple(strengths), weights=tuple(weights))


async def _raw_on_disk(asked: RequestedIntervention, state: State, engine: Engine, hub: Hub) -> tuple[Edit, ...]:
    record = state.saes[asked.sae_id]
    edits = asked.steering
    d_sae = 0 if record.sae is None else record.sae.d_sae
    if all(edit.unit == "raw" for edit in edits) or any(edit.feature >= d_sae for edit in edits):
        return edits
    folder = await hub.locate(record.location)
    return _bounded(await engine.raw_on_disk(record.location, folder, edits), edits)


async def raw_requests(
    requests: Sequence[AdmitGeneration], state: State, engine: Engine
) -> tuple[AdmitGeneration, ...]:
    """Each as `raw_request`; what many of them have in common is resolved once."""
    known: dict[tuple[int, ...], AdmitGeneration] = {}
    found = []
    async for each in in_turns(requests):
        shared = tuple(id(getattr(each, name)) for name in OwnIntervention.__struct_fields__)
        if shared not in known:
            known[shared] = await raw_request(each, state, engine)
        raw = known[shared]
        found.append(replace(each, steering=raw.steering, interventions=raw.interventions))
    return tuple(found)


async def _raw(edits: tuple[Edit, ...], sae_id: str | None, state: State, engine: Engine) -> tuple[Edit, ...]:
    # In half precision even a raw strength may be too large: the engine, which knows the decoder's rows, checks it.
    if all(edit.unit == "raw" for edit in edits) and not _in_half(state):
        return edits
    attachment = state.attachment(meant(state, edits) if sae_id is None else sae_id)
    record = None if attachment is None else state.saes[attachment.sae_id].sae
    if attachment is None or record is None or any(edit.feature >= record.d_sae for edit in edits):
        return edits
    return _bounded(await engine.raw(attachment.request_position, edits), edits)


def _bounded(found: tuple[Edit, ...], edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """What was found for `edits`, if it is within the bounds of raw strengths."""
    for edit, given in zip(found, edits, strict=True):
        if not math.isfinite(edit.strength) or abs(edit.strength) > MAX_STRENGTH:
            raise BadRequestError(
                f"feature {given.feature}: {given.strength:g} ({given.unit}) is more than {MAX_STRENGTH:g} raw",
                param="strength",
            )
    return found


def _in_half(state: State) -> bool:
    """Whether the model or an SAE is in `float16`, which holds at most 65504. Matrices in int8 read that too."""
    facts = None if state.model is None else state.model.facts
    ends = facts is not None and (facts.dtype == "float16" or facts.quantization == "int8")
    return ends or any(a.dtype == "float16" for a in state.attached)
