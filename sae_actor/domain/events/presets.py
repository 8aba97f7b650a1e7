"""Presets: interventions with a name, and which of them a generation used."""

from __future__ import annotations

from msgspec import Struct

from ..refs import Edit, Exclusion, Mode
from ..weights import WeightsFiles
from .payload import Intent


class PresetSae(Struct, frozen=True, kw_only=True):
    """One SAE of a preset, with the weights that its edits were resolved for."""

    sae_id: str
    weights_sha256: str
    weights_files: WeightsFiles = ()
    mode: Mode = "steer"
    steering: tuple[Edit, ...] = ()
    """The edits with raw strengths: what a generation runs under."""
    asked: tuple[Edit, ...] = ()
    """The same edits in the units in which they were sent."""
    exclude: tuple[Exclusion, ...] | None = None
    """As of `ActiveSae`."""


class PresetVersion(Struct, frozen=True, kw_only=True):
    """A preset as it was saved at a position."""

    name: str
    position: int
    """Position of its PresetSaved."""


class PresetSaved(Intent, frozen=True, kw_only=True):
    name: str
    interventions: tuple[PresetSae, ...]
    description: str | None = None


class PresetDeleted(Intent, frozen=True, kw_only=True):
    name: str
