"""A request's intervention and readings, ready for the steps of its generation."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ConflictingEditsError, InternalError
from ...ports import GenerationRequest, Watch
from ..decoding.generation import InterventionGone
from ..interventions.hooks import PreparedIntervention
from ..interventions.positions import TokenKinds
from ..interventions.probes import Probe
from ..interventions.sae_intervention import SaeIntervention
from ..model.loading import LoadedModel
from .residents import Resident


def prepared(
    request: GenerationRequest, model: LoadedModel, residents: Mapping[int, Resident]
) -> PreparedIntervention | None:
    """The intervention with the residents, by attach_position; None if it changes nothing. On the device thread.
    Raises `InterventionGone`, `ConflictingEditsError`."""
    parts, turns = [], request.turns
    marks = TokenKinds(request.token_ids, model.tokenizer.special_ids, turns)
    for token in request.given[len(request.token_ids) :]:
        marks.add(token)
    for sae in request.intervention:
        resident = residents.get(sae.attach_position)
        if resident is None:
            raise InterventionGone
        if (resident.hook_point, resident.hook_point_out) != (sae.hook_point, sae.hook_point_out):
            raise InternalError(f"{sae.sae_id} is at {resident.hook_point}, not at {sae.hook_point}")
        if sae.changes_text:
            steering = resident.steering(sae.steering, model.written_in(resident.written_at))
            parts.append(SaeIntervention(sae, steering, len(request.token_ids), turns, marks))
    reconstructed = [part.write_at for part in parts if part.reconstructs]
    if len(set(reconstructed)) < len(reconstructed):
        raise ConflictingEditsError("two SAEs cannot both reconstruct one hook point")
    stop = request.stop_when
    last = () if stop is None else (Watch(sae=stop.sae, features=(stop.feature,), exclude=stop.exclude),)
    found = [_probe(watch, request, model, residents, marks) for watch in (*last, *request.watched)]
    probes = [probe for probe in found if probe is not None]
    asked = request.details
    if not (parts or probes) and asked is None:
        return None
    prompt, window = len(request.token_ids), request.sink_window
    applied = PreparedIntervention(parts, model.architecture, prompt, probes, marks, window=window)
    applied.stop = probes[0] if last else None
    if asked is not None:
        read = [_detailed(watch, request, model, residents, marks) for watch in asked]
        applied.report_edits([probe for probe in read if probe is not None])
    return applied


def _detailed(
    watch: Watch, request: GenerationRequest, model: LoadedModel, residents: Mapping[int, Resident], marks: TokenKinds
) -> Probe | None:
    """None without an encoder. It looks for no sinks: it is not to decide how the prompt is divided."""
    resident = residents.get(watch.sae.attach_position)
    if resident is None:
        raise InterventionGone
    if not resident.sae.encodes:
        return None
    hook, named = model.architecture.hook(resident.hook_point), Watch(sae=watch.sae, features=watch.features)
    return Probe(named, resident.sae, hook, prompt=len(request.token_ids), marks=marks, window=None)


def _probe(
    watch: Watch, request: GenerationRequest, model: LoadedModel, residents: Mapping[int, Resident], marks: TokenKinds
) -> Probe | None:
    """None for a missing one whose rate is limited."""
    resident = None if watch.of_place else residents.get(watch.sae.attach_position)
    if resident is not None or watch.of_place:
        point, sae = (watch.sae.hook_point, None) if resident is None else (resident.hook_point, resident.sae)
        hook, prompt = model.architecture.hook(point), len(request.token_ids)
        lens = None if watch.lens is None else model.lens
        return Probe(watch, sae, hook, prompt=prompt, marks=marks, window=request.sink_window, lens=lens)
    if watch.every_seconds is not None:
        return None
    raise InterventionGone
