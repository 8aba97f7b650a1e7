"""Effects: slow work that a state requires, named as values.

An effect states a result ("resid_post.12 carries X"), so running it twice does no harm. It carries the position of its
intent, so that a late report of a cancelled attempt changes nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

from msgspec import Struct

from .events import RunKind, RunSae, RunTexts, RunVariant, Source
from .refs import HookPoint, Mode, SaeDescription
from .state import SaeLocation
from .weights import WeightsFiles

EffectName: TypeAlias = Literal["load_model", "download", "import", "attach", "detach", "delete", "run"]


class _Effect(Struct, frozen=True, kw_only=True):
    name: ClassVar[EffectName]
    request_position: int


class LoadModelEffect(_Effect, frozen=True, kw_only=True):
    name = "load_model"
    model: str
    revision: str
    dtype: str
    device: str
    quantization: str | None = None


class DownloadEffect(_Effect, frozen=True, kw_only=True):
    name = "download"
    sae_id: str
    repository_id: str
    revision: str
    path: str | None
    force: bool


class ImportEffect(_Effect, frozen=True, kw_only=True):
    name = "import"
    sae_id: str
    path: str
    layer: int | None = None
    source: Source = "import"
    """`vectors`: the service keeps the folder `path`."""


class AttachEffect(_Effect, frozen=True, kw_only=True):
    name = "attach"
    sae_id: str
    weights_sha256: str
    weights_files: WeightsFiles = ()
    location: SaeLocation
    sae: SaeDescription
    hook_point: HookPoint
    hook_point_out: HookPoint | None
    mode: Mode
    dtype: str


class DetachEffect(_Effect, frozen=True, kw_only=True):
    name = "detach"
    sae_id: str
    attach_position: int
    """The resident to free: `request_position` of its AttachRequested."""


class DeleteEffect(_Effect, frozen=True, kw_only=True):
    name = "delete"
    sae_id: str
    location: SaeLocation
    kept: tuple[SaeLocation, ...] = ()
    """Other SAEs whose files stay: files that they share are not deleted."""


class RunEffect(_Effect, frozen=True, kw_only=True):
    """A measurement, from its last durable step on."""

    name = "run"
    run_id: str
    kind: RunKind
    spec: dict[str, Any]
    saes: tuple[RunSae, ...] = ()
    texts: tuple[RunTexts, ...] = ()
    variants: tuple[RunVariant, ...] = ()
    seeds: tuple[int, ...] = ()


Effect: TypeAlias = (
    LoadModelEffect | DownloadEffect | ImportEffect | AttachEffect | DetachEffect | DeleteEffect | RunEffect
)


class Residents(Struct, frozen=True):
    """The model and SAEs that the device may keep: everything else in its memory is freed."""

    model: int | None = None
    """Position of the ModelLoadRequested whose model may stay."""
    saes: tuple[int, ...] = ()
    """Positions of the AttachRequested events whose SAEs may stay."""
