"""Messages between the service and the process of one download: one JSON object per line.

The job goes in on standard input, messages come out on standard output; the last one is `Done`, `Listed`,
`Fetched` or `Failed`. Standard input stays open as long as the service lives: its end is the child's end. They
never hold a token: the child finds that in its environment, where the hub's library looks.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from ..domain.refs import SaeDescription, SaeFile
from ..domain.weights import WeightsFiles
from ..ports import CatalogEntry, Progress
from .digests import Stamp


class Patience(Struct, frozen=True, kw_only=True):
    """How long to wait for a hub, and how often to come back. Seconds, unless said otherwise."""

    request_seconds: float = 60.0
    """A listing, a header or a connection may take this long as a whole."""
    stall_seconds: float = 30.0
    """No byte of a body for this long is a stall."""
    slow_seconds: float = 60.0
    """Over such a window a body must bring `slow_bytes` a second."""
    slow_bytes: int = 10_000
    backoff_seconds: float = 1.0
    """First wait before another try; doubled each time."""
    backoff_cap_seconds: float = 60.0
    """The longest wait, whatever Retry-After says."""
    tries: int = 5
    """Tries in a row that may bring less than `worthwhile_bytes`."""
    worthwhile_bytes: int = 1 << 20


class _Job(Struct, frozen=True, kw_only=True):
    parent: int
    """Process id of the service."""


class _HubJob(_Job, frozen=True, kw_only=True):
    revision: str
    download_hosts: tuple[str, ...]
    patience: Patience


class CatalogJob(_HubJob, frozen=True, kw_only=True, tag="catalog"):
    repository_id: str


class ModelJob(_HubJob, frozen=True, kw_only=True, tag="model"):
    """Bring a model's files into the user's hub cache."""

    model: str
    reserve_bytes: int
    """Free disk that a download must leave."""
    weights: bool
    """Also its weights, besides its settings."""
    quantization: str | None
    device: str
    """As `LoadModel` has them: what the weights must be good for."""


class DownloadJob(_HubJob, frozen=True, kw_only=True, tag="download"):
    root: str
    """The data folder's hub/."""
    sae_id: str
    request_position: int
    repository_id: str
    path: str | None
    force: bool
    quota_bytes: int | None
    reserve_bytes: int


class ImportJob(_Job, frozen=True, kw_only=True, tag="import"):
    """Register a folder whose weights are in a pickle."""

    root: str
    sae_id: str
    path: str
    layer: int | None = None


Job: TypeAlias = DownloadJob | CatalogJob | ImportJob | ModelJob


class Placed(Struct, frozen=True):
    """A verified file, its stamp when it was verified, and where it (or the link to it) is."""

    file: SaeFile
    stamp: Stamp
    at: str


class Done(Struct, frozen=True, kw_only=True, tag="done"):
    commit: str | None
    files: tuple[Placed, ...]
    sae: SaeDescription
    weights_sha256: str
    weights_files: WeightsFiles


class Listed(Struct, frozen=True, kw_only=True, tag="listed"):
    entries: tuple[CatalogEntry, ...]


class Fetched(Struct, frozen=True, kw_only=True, tag="fetched"):
    commit: str | None
    """None: not complete on disk, and offline."""


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    code: str
    detail: str
    fields: dict[str, Any] = {}


Message: TypeAlias = Progress | Done | Listed | Fetched | Failed

JOB = msgspec.json.Decoder(Job)
MESSAGE = msgspec.json.Decoder(Message)
