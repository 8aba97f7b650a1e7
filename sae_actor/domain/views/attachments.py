"""Attached SAEs, with their steering and monitoring."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from ..refs import Edit, Exclusion, HookPoint, Mode, Monitoring
from ..state import AttachmentState, State
from ..structs import filled
from .fields import Bytes, Position, Time


class AttachmentFields(Struct, frozen=True, kw_only=True):
    is_attached: bool
    sae_id: str | None
    layer: int | None
    hook_point: HookPoint | None
    hook_point_out: HookPoint | None
    mode: Mode | None
    exclude: tuple[Exclusion, ...] | None
    dtype: str | None
    attached_at: Time | None
    memory_bytes: Bytes | None
    device_bytes: Bytes | None
    steering: tuple[Edit, ...] | None
    steering_enabled: bool | None
    position: Position | None
    labels: dict[str, str] | UnsetType = UNSET
    """Feature → its label, of those edited that have one; in answers about now alone."""


class Attachment(AttachmentFields, frozen=True, kw_only=True):
    """The first attached SAE (null where there is none), and all of them."""

    attachments: tuple[AttachmentFields, ...]


class AttachedSteering(Struct, frozen=True, kw_only=True):
    """The edits in force."""

    sae_id: str
    features: tuple[Edit, ...]
    enabled: bool
    position: Position
    labels: dict[str, str] | UnsetType = UNSET
    """Feature → its label, of those edited that have one."""


class Monitored(Struct, frozen=True, kw_only=True):
    """The activations of an attached SAE that are streamed during generation."""

    sae_id: str
    features: tuple[int, ...] | None
    top_k: int
    exclude: tuple[Exclusion, ...]
    position: Position | None


def labels_of(edits: tuple[Edit, ...], labels: Mapping[int, str]) -> dict[str, str] | UnsetType:
    """Next to the edits, which a client may send back as they are."""
    return {str(edit.feature): labels[edit.feature] for edit in edits if edit.feature in labels} or UNSET


def attachment_fields(attachment: AttachmentState) -> AttachmentFields:
    return filled(
        AttachmentFields,
        attachment,
        is_attached=attachment.status == "attached",
        layer=attachment.hook_point.layer,
        steering_enabled=attachment.enabled,
    )


def attachment_view(state: State, labels: Mapping[str, Mapping[int, str]] | None = None) -> Attachment:
    """The first attached SAE's fields, and all of them in `attachments`. labels: SAE → labels of its features."""
    shown = tuple(
        replace(attachment_fields(a), labels=labels_of(a.steering, (labels or {}).get(a.sae_id, {})))
        for a in state.attached
    )
    first = shown[0] if shown else None
    known = UNSET if first is None else first.labels
    return filled(Attachment, first, is_attached=first is not None, attachments=shown, labels=known)


def steering_view(attachment: AttachmentState, labels: Mapping[int, str] | None = None) -> AttachedSteering:
    return filled(
        AttachedSteering, attachment, features=attachment.steering, labels=labels_of(attachment.steering, labels or {})
    )


def monitor_view(attachment: AttachmentState, monitoring: Monitoring) -> Monitored:
    return filled(Monitored, monitoring, attachment, position=attachment.monitoring_position)
