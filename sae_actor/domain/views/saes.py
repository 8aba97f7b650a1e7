"""One SAE, as the service knows it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from ..events import MadeFrom, Problem, Source
from ..placement import outdated, reread
from ..refs import HookPoint, SaeFile
from ..state import AttachmentState, SaeRecord, State
from ..structs import filled
from ..weights import WeightsFiles
from .fields import Bytes, Time

SaeStatus: TypeAlias = Literal["downloading", "cached", "attaching", "attached", "deleting", "error"]


class Sae(Struct, frozen=True, kw_only=True):
    """One SAE. Fields that come from its files are null until the files are complete."""

    sae_id: str
    repository_id: str | None
    revision: str | None
    commit: str | None
    path: str | None
    named_as: Annotated[str | None, Meta(description="the name elsewhere that it was downloaded under")]
    name: str
    source: Source
    layer: Annotated[int | None, Meta(description="of an import: which layer of a file of vectors")]
    made_from: MadeFrom | None
    status: SaeStatus
    format: str | None
    architecture: str | None
    d_in: int | None
    d_sae: int | None
    d_out: int | None
    dtype: str | None
    trained_on: str | None
    trained_layer: int | None
    hook_name: str | None
    hook_point: HookPoint | None
    hook_point_out: HookPoint | None
    files: tuple[SaeFile, ...]
    file_size_bytes: Bytes
    memory_bytes: Bytes | None
    weights_sha256: Annotated[
        str | None, Meta(description="of one file its own sha256; in older logs, and of several, that of their list")
    ]
    names: Annotated[tuple[str, ...], Meta(description="of vectors: what each row is called")]
    median_norm: Annotated[float | None, Meta(description="of vectors: the median |x| at their hook point, if known")]
    prepend_bos: Annotated[bool | None, Meta(description="trained on texts that begin with BOS; null: not said")]
    ignored: Annotated[dict[str, str], Meta(description="settings in its files that play no part, and why")]
    weights_files: WeightsFiles
    warnings: tuple[str, ...]
    created_at: Time
    error: Problem | None


def sae_view(record: SaeRecord, state: State) -> Sae:
    sae = reread(record.sae) if record.sae else None
    mine = [a for a in state.attachments if a.sae_id == record.sae_id]
    attachment = next((a for a in mine if a.status != "failed"), None)
    lost = next((a for a in mine if a.status == "failed"), None) if attachment is None else None
    dtype = mine[0].dtype if mine else "float32"
    return filled(
        Sae,
        record,
        sae,
        name=_name(record),
        status=_status(record, attachment, lost),
        file_size_bytes=sum(file.bytes for file in record.files),
        memory_bytes=sae.memory_bytes(dtype) if sae else None,
        weights_sha256=record.weights_sha256 or None,
        names=sae.names if sae else (),
        ignored=dict(sae.ignored) if sae else {},
        weights_files=record.weights,
        warnings=(*(sae.warnings if sae else ()), *_outdated(record, attachment, state)),
        error=record.error if lost is None else lost.error,
    )


def _outdated(record: SaeRecord, attachment: AttachmentState | None, state: State) -> tuple[str, ...]:
    facts = None if state.model is None else state.model.facts
    if record.sae is None or attachment is None or facts is None:
        return ()
    return outdated(record.sae, facts, attachment.hook_point, attachment.hook_point_out)


def _name(record: SaeRecord) -> str:
    if record.source == "vectors":
        return record.sae_id.rpartition("-")[0]
    path = record.path or record.repository_id or record.sae_id
    return path.rstrip("/").rpartition("/")[2]


def _status(record: SaeRecord, attachment: AttachmentState | None, lost: AttachmentState | None) -> SaeStatus:
    if attachment is not None:
        return "attaching" if attachment.status == "attaching" else "attached"
    return "error" if lost is not None and record.status == "cached" else record.status
