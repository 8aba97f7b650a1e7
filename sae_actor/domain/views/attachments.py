"""Attached SAEs, with their steering and monitoring."""

from __future__ import annotations

from msgspec import Struct

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


class Attachment(AttachmentFields, frozen=True, kw_only=True):
    """The first attached SAE (null where there is none), and all of them."""

    attachments: tuple[AttachmentFields, ...]


class AttachedSteering(Struct, frozen=True, kw_only=True):
    """The edits in force."""

    sae_id: str
    features: tuple[Edit, ...]
    enabled: bool
    position: Position


class Monitored(Struct, frozen=True, kw_only=True):
    """The activations of an attached SAE that are streamed during generation."""

    sae_id: str
    features: tuple[int, ...] | None
    top_k: int
    exclude: tuple[Exclusion, ...]
    position: Position | None


def attachment_fields(attachment: AttachmentState) -> AttachmentFields:
    return filled(
        AttachmentFields,
        attachment,
        is_attached=attachment.status == "attached",
        layer=attachment.hook_point.layer,
        steering_enabled=attachment.enabled,
    )


def attachment_view(state: State) -> Attachment:
    """The first attached SAE's fields, and all of them in `attachments`."""
    shown = tuple(attachment_fields(a) for a in state.attached)
    first = shown[0] if shown else None
    return filled(Attachment, first, is_attached=first is not None, attachments=shown)


def steering_view(attachment: AttachmentState) -> AttachedSteering:
    return filled(AttachedSteering, attachment, features=attachment.steering)


def monitor_view(attachment: AttachmentState, monitoring: Monitoring) -> Monitored:
    return filled(Monitored, monitoring, attachment, position=attachment.monitoring_position)
