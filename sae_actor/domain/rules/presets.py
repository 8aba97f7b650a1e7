"""The rules of presets: save, delete, use."""

from __future__ import annotations

from msgspec.structs import replace

from ... import errors
from .. import events as ev
from ..commands import DeletePreset, RequestedIntervention, SavePreset
from ..events import PresetSae
from ..messages import ResolvedPreset
from ..refs import Edit
from ..state import Preset, State
from ..weights import WeightsFiles
from .attachments import described, known
from .edits import checked, named_once, needs_encoder

MAX_PRESETS = 1000


def save(command: SavePreset, state: State, resolved: ResolvedPreset | None = None) -> list[ev.Payload]:
    """`resolved`: the command with raw strengths, unless all are raw already."""
    if command.name not in state.presets and len(state.presets) >= MAX_PRESETS:
        raise errors.BadRequestError(
            f"there are {len(state.presets)} presets; at most {MAX_PRESETS} are kept: delete one", param="name"
        )
    sae_ids = [each.sae_id for each in command.interventions]
    if len(set(sae_ids)) != len(sae_ids):
        raise errors.ConflictingEditsError(
            "interventions names an SAE more than once; give all its edits in one entry", param="interventions"
        )
    saes = []
    for number, asked in enumerate(command.interventions):
        edits = asked.steering if resolved is None else resolved.strengths[number]
        made_for = None if resolved is None else resolved.weights[number]
        saes.append(_sae(asked, edits, made_for, state))
    return [ev.PresetSaved(name=command.name, interventions=tuple(saes), description=command.description)]


def _sae(asked: RequestedIntervention, edits: tuple[Edit, ...], made_for: str | None, state: State) -> PresetSae:
    digest, files = weights_now(state, asked.sae_id)
    if made_for not in (None, digest):
        raise errors.SAEInUseError(
            f"the weights of {asked.sae_id} changed while its strengths were resolved; send the command again",
            sae_id=asked.sae_id,
        )
    sae = described(known(state, asked.sae_id))
    if asked.mode == "reconstruct":
        needs_encoder(sae, asked.sae_id, "mode reconstruct", param="mode")
    steering = checked(edits, asked.sae_id, sae)
    return PresetSae(
        sae_id=asked.sae_id,
        weights_sha256=digest,
        weights_files=files,
        mode=asked.mode,
        steering=steering,
        asked=tuple(
            replace(mine, strength=each.strength, unit=each.unit)
            for mine, each in zip(steering, asked.steering, strict=True)
        ),
        exclude=asked.exclude and named_once(asked.exclude),
    )


def weights_now(state: State, sae_id: str) -> tuple[str, WeightsFiles]:
    """Digest and files of an SAE's weights: on the model if it is attached, else on disk. `SAENotFoundError`, and
    what `described` raises."""
    record = known(state, sae_id)
    described(record)
    attachment = state.attachment(sae_id)
    if attachment is not None and attachment.weights_sha256:
        return attachment.weights_sha256, attachment.weights_files or record.weights
    return record.weights_sha256, record.weights


def delete(command: DeletePreset, state: State) -> list[ev.Payload]:
    if command.name not in state.presets:
        raise errors.PresetNotFoundError(f"there is no preset {command.name}", name=command.name)
    return [ev.PresetDeleted(name=command.name)]


def used(state: State, name: str) -> Preset:
    """The preset of that name, which can be applied now as a whole.

    `ModelNotFoundError` without one, `SAENotAttachedError` with `missing`, `SAEIncompatibleError` for an SAE that is
    attached with other weights.
    """
    preset = state.presets.get(name)
    if preset is None:
        raise errors.ModelNotFoundError(f"there is no preset {name}", param="model", preset=name)
    if gone := preset.missing(state):
        raise errors.SAENotAttachedError(
            f"the preset {name} needs {', '.join(gone)}, not attached now", preset=name, missing=gone
        )
    if other := preset.incompatible(state):
        raise errors.SAEIncompatibleError(
            f"the preset {name} was saved for other weights of {', '.join(other)} than those attached: save it again",
            preset=name,
            incompatible=other,
        )
    return preset


def requested(preset: Preset) -> tuple[RequestedIntervention, ...]:
    """The preset's interventions as a request would bring them along, with raw strengths."""
    return tuple(
        RequestedIntervention(sae_id=each.sae_id, mode=each.mode, steering=each.steering, exclude=each.exclude)
        for each in preset.interventions
    )
