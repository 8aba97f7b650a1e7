"""Reports of effects: only what the effect learned. `decide` makes events from a report and the state.

The loss of the device, the end of a generation and settings that were read again are reported as the events
themselves: the state adds nothing.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from . import events as ev
from .effects import Effect
from .refs import ModelFacts, SaeDescription, SaeFile
from .weights import WeightsFiles


class HubSae(Struct, frozen=True, kw_only=True):
    """What the hub adapter knows of an SAE whose files are complete and verified."""

    commit: str | None
    files: tuple[SaeFile, ...]
    sae: SaeDescription
    weights_sha256: str
    weights_files: WeightsFiles = ()
    """The files that hold the weights, in the order of `files`."""


class AttachedSae(Struct, frozen=True, kw_only=True):
    """What the engine measured when it put an SAE on the device."""

    memory_bytes: int
    device_bytes: int
    dtype: str


class EffectDone(Struct, frozen=True):
    """An effect succeeded. A report that arrives after its request has ended changes nothing."""

    effect: Effect
    found: ModelFacts | HubSae | AttachedSae | int
    """What was loaded, fetched or attached. For a detach or a delete: the number of bytes freed."""


class EffectFailed(Struct, frozen=True):
    """An effect failed."""

    effect: Effect
    error: ev.Problem


class SaeFailed(Struct, frozen=True):
    """An attached SAE could not be computed."""

    attach_position: int
    error: ev.Problem


Report: TypeAlias = EffectDone | EffectFailed | SaeFailed | ev.GpuLost | ev.GenerationFinished | ev.SettingsReloaded
