"""SAEs on disk and on the model."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from ..refs import Edit, Exclusion, Feature, HookPoint, Mode, Monitoring, SaeDescription, SaeFile, SaeId
from ..weights import WeightsFiles
from .payload import Intent, Payload, Problem

Source: TypeAlias = Literal["hub", "import", "vectors"]
"""Where the files of an SAE are from; of `vectors` the service wrote them."""


class TextsRead(Struct, frozen=True, kw_only=True):
    """Texts that a direction was made from."""

    texts: int
    sha256: Annotated[str, Meta(description="of the list of texts as JSON")]
    tokens: Annotated[int, Meta(description="that were counted, in all texts")]
    excluded: int


class NormOf(Struct, frozen=True, forbid_unknown_fields=True):
    """The feature of an SAE whose decoder row is as long as a random direction."""

    sae_id: SaeId
    feature: Feature


class MadeFrom(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What vectors of the service were made from; of rows that a client sent, nothing more is known."""

    kind: Literal["rows", "difference_of_means", "random"]
    model: str | None = None
    commit: str | None = None
    positive: TextsRead | None = None
    negative: TextsRead | None = None
    random_seed: int | None = None
    norm: float | None = None
    norm_of: NormOf | None = None


# — on disk —


class DownloadRequested(Intent, frozen=True, kw_only=True):
    sae_id: str
    source: Source = "hub"
    repository_id: str | None = None
    revision: str | None = None
    path: str | None = None
    """Path inside the repository; for an import the resolved folder, for vectors their id."""
    layer: int | None = None
    """Of an import: which of the layers in a file of vectors."""
    made_from: MadeFrom | None = None
    """Of vectors that the service keeps."""
    force: bool = False
    joined: int | None = None
    reused: bool = False
    named_as: str | None = None
    """The name elsewhere that repository and path were found under."""


class DownloadCompleted(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    source: Source = "hub"
    commit: str | None = None
    files: tuple[SaeFile, ...]
    sae: SaeDescription
    weights_sha256: str
    """Digest of the files that hold weights: what an intervention names. Of one file its own sha256; in older events,
    and of several, that of a list of them (see `domain.weights`)."""
    weights_files: WeightsFiles = ()
    reused: bool = False


class DownloadFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    error: Problem


class DownloadCancelled(Intent, frozen=True, kw_only=True):
    request_position: int
    sae_id: str


class DeleteRequested(Intent, frozen=True, kw_only=True):
    sae_id: str


class SaeDeleted(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    freed_bytes: int
    labels: int = 0
    """Labels of its features that went with it."""


class DeleteFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    error: Problem


# — on the model —


class AttachRequested(Intent, frozen=True, kw_only=True):
    sae_id: str
    hook_point: HookPoint
    hook_point_out: HookPoint | None = None
    mode: Mode = "steer"
    dtype: str = "float32"
    replaces: tuple[str, ...] = ()
    """SAEs that are detached in the same transaction in which this one is attached."""
    warnings: tuple[str, ...] = ()
    exclude: tuple[Exclusion, ...] | None = None
    """As of `ActiveSae`."""


class SaeAttached(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    hook_point: HookPoint
    hook_point_out: HookPoint | None = None
    mode: Mode = "steer"
    dtype: str = "float32"
    """Type in which the SAE computes."""
    weights_sha256: str = ""
    weights_files: WeightsFiles = ()
    memory_bytes: int = 0
    """Estimate from the shapes of the weights."""
    device_bytes: int = 0
    """What the device really took."""
    steering: tuple[Edit, ...] = ()
    enabled: bool = True
    monitoring: Monitoring | None = None
    """What came along: of a moved or restored SAE."""
    restored: bool = False
    exclude: tuple[Exclusion, ...] | None = None
    """As of `ActiveSae`."""

    @property
    def layer(self) -> int:
        return self.hook_point.layer


class AttachFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    sae_id: str
    error: Problem
    restored: bool = False


class DetachRequested(Intent, frozen=True, kw_only=True):
    sae_id: str


class SaeDetached(Payload, frozen=True, kw_only=True):
    request_position: int
    """The intent that took it out: a DetachRequested, or the AttachRequested that replaced it."""
    attach_position: int
    """The AttachRequested that had brought it."""
    sae_id: str
    freed_bytes: int
    """What was free again when this was written."""
    held_bytes: int = 0
    """What the device still held of it: of one that was replaced, or failed, until its last generation has ended."""
    reason: Literal["requested", "replaced", "fault"] = "requested"


class SteeringChanged(Intent, frozen=True, kw_only=True):
    sae_id: str
    features: tuple[Edit, ...]
    enabled: bool = True


class MonitoringChanged(Intent, frozen=True, kw_only=True):
    sae_id: str
    enabled: bool
    features: tuple[int, ...] | None = None
    top_k: int = 10
    exclude: tuple[Exclusion, ...] = ()
    """As of `Monitoring`."""


class HookFaulted(Payload, frozen=True, kw_only=True):
    """The SAE could not be computed on a live activation; it is detached, the requests under it fail."""

    sae_id: str
    request_position: int
    error: Problem
