"""What comes back of an effect: only what it found out. `decide` makes an event of it and of the state.

The loss of the device and the end of a generation are reported as the events themselves: no state adds to them.
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
    """What the engine measured when an SAE came to the device."""

    memory_bytes: int
    device_bytes: int
    dtype: str


class EffectDone(Struct, frozen=True):
    """An effect worked out. A late one, of a request that waits for it no more, changes nothing."""

    effect: Effect
    found: ModelFacts | HubSae | AttachedSae | int
    """What was loaded, fetched or attached; of a detach and a delete the bytes that are free again."""


class EffectFailed(Struct, frozen=True):
    """An effect did not work out."""

    effect: Effect
    error: ev.Problem


class SaeFailed(Struct, frozen=True):
    """An attached SAE could not be computed."""

    attach_position: int
    error: ev.Problem


Report: TypeAlias = EffectDone | EffectFailed | SaeFailed | ev.GpuLost | ev.GenerationFinished
