"""Presets, and whether they can be used now."""

from __future__ import annotations

from msgspec import Struct

from ..events import PresetSae
from ..state import Preset, State
from ..structs import filled
from .fields import Position, Time


class ShownPreset(Struct, frozen=True, kw_only=True):
    """An intervention with a name. `position` is its version; `steering` has raw strengths, `asked` those that were
    sent."""

    name: str
    description: str | None
    interventions: tuple[PresetSae, ...]
    position: Position
    saved_at: Time
    usable: bool
    missing: tuple[str, ...]
    """Its SAEs that are not attached."""
    incompatible: tuple[str, ...]
    """Its SAEs that are attached with other weights than it was saved for."""


class Presets(Struct, frozen=True, kw_only=True):
    presets: tuple[ShownPreset, ...]


def presets_view(state: State) -> Presets:
    """All of them, by name."""
    return Presets(presets=tuple(_preset(preset, state) for _, preset in sorted(state.presets.items())))


def _preset(preset: Preset, state: State) -> ShownPreset:
    gone, others = preset.missing(state), preset.incompatible(state)
    return filled(ShownPreset, preset, usable=not gone and not others, missing=gone, incompatible=others)
