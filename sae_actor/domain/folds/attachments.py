"""How the attachments change: the part of `evolve` that is about SAEs on the model."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from .. import events as ev
from ..events import Draft
from ..refs import Monitoring
from ..state import AttachmentState
from .restart import in_a_row


def attachments_after(
    attachments: tuple[AttachmentState, ...], event: Draft, payload: ev.Payload
) -> tuple[AttachmentState, ...]:
    at = event.position
    match payload:
        case ev.SaeAttached():
            done = tuple(
                replace(
                    a,
                    status="attached",
                    hook_point=payload.hook_point,
                    hook_point_out=payload.hook_point_out,
                    mode=payload.mode,
                    exclude=payload.exclude,
                    dtype=payload.dtype,
                    weights_sha256=payload.weights_sha256,
                    weights_files=payload.weights_files,
                    memory_bytes=payload.memory_bytes,
                    device_bytes=payload.device_bytes,
                    steering=payload.steering,
                    enabled=payload.enabled,
                    monitoring=payload.monitoring,
                    monitoring_position=None if payload.monitoring is None else at,
                    attached_at=a.attached_at or event.time,
                    replaces=(),
                    attempts=0,
                    error=None,
                    position=at,
                )
                if a.request_position == payload.request_position and a.status == "attaching"
                else a
                for a in attachments
            )
            # A new attach shows that someone has seen what is missing since the restart.
            return done if payload.restored else tuple(a for a in done if a.status != "failed")
        case ev.AttachFailed():
            if payload.restored:
                return tuple(
                    replace(
                        a,
                        status="failed",
                        error=payload.error,
                        restored=True,
                        attempts=in_a_row(a.attempts),
                        position=at,
                    )
                    if a.request_position == payload.request_position and a.status == "attaching"
                    else a
                    for a in attachments
                )
            return tuple(
                a for a in attachments if a.request_position != payload.request_position or a.status != "attaching"
            )
        case ev.DetachRequested():
            leaving = leaves(attachments, payload.sae_id)
            # Someone has seen what is missing since the restart: what failed goes too.
            return tuple(
                replace(
                    a, status="detaching", detach_position=at, steering=(), monitoring=None, attempts=0, position=at
                )
                if a is leaving
                else a
                for a in attachments
                if a is leaving or a.status == "detaching" or (a.sae_id != payload.sae_id and a.status != "failed")
            )
        case ev.SaeDetached():
            return tuple(a for a in attachments if a.request_position != payload.attach_position)
        case ev.SteeringChanged():
            return tuple(
                replace(a, steering=payload.features, enabled=payload.enabled, position=at)
                if a.sae_id == payload.sae_id and a.status == "attached"
                else a
                for a in attachments
            )
        case ev.MonitoringChanged():
            asked = Monitoring(features=payload.features, top_k=payload.top_k, exclude=payload.exclude)
            wanted = asked if payload.enabled else None
            return tuple(
                replace(a, monitoring=wanted, monitoring_position=at)
                if a.sae_id == payload.sae_id and a.status == "attached"
                else a
                for a in attachments
            )
        case _:
            return attachments


def leaves(attachments: Iterable[AttachmentState], sae_id: str) -> AttachmentState | None:
    """The attachment that a Detach removes: the attached one, else the one being attached, else the failed one.

    Anything else of the SAE, such as a move in progress, was never attached and is dropped.
    """
    order = ("attached", "attaching", "failed")
    mine = [a for a in attachments if a.sae_id == sae_id and a.status in order]
    return min(mine, key=lambda a: order.index(a.status), default=None)
