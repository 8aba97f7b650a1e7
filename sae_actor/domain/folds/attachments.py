"""How the attachments change: the part of `evolve` for SAEs on the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from .. import events as ev
from ..events import Draft
from ..refs import Monitoring
from ..state import AttachmentState
from ..structs import filled
from .restart import in_a_row


def attachments_after(
    attachments: tuple[AttachmentState, ...], event: Draft, payload: ev.Payload
) -> tuple[AttachmentState, ...]:
    at = event.position
    changed: dict[str, Any]
    match payload:
        case ev.SaeAttached():
            come = {"status": "attached", "attempts": 0, "error": None, "replaces": (), "position": at}
            watched = None if payload.monitoring is None else at
            done = tuple(
                filled(
                    AttachmentState,
                    payload,
                    a,
                    **come,
                    sae_id=a.sae_id,
                    monitoring_position=watched,
                    attached_at=a.attached_at or event.time,
                    restored=a.restored,
                )
                if _is_coming(a, payload)
                else a
                for a in attachments
            )
            # A new attach shows that a client has seen which SAEs the restart lost: forget the failed ones.
            return done if payload.restored else tuple(a for a in done if a.status != "failed")
        case ev.AttachFailed() if payload.restored:
            lost = {"status": "failed", "error": payload.error, "restored": True, "position": at}
            return tuple(
                replace(a, **lost, attempts=in_a_row(a.attempts)) if _is_coming(a, payload) else a for a in attachments
            )
        case ev.AttachFailed():
            return tuple(a for a in attachments if not _is_coming(a, payload))
        case ev.DetachRequested():
            leaving = leaves(attachments, payload.sae_id)
            # A detach shows that a client has seen which SAEs the restart lost: forget the failed ones.
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
            changed = {"steering": payload.features, "enabled": payload.enabled, "position": at}
        case ev.MonitoringChanged():
            wanted = filled(Monitoring, payload) if payload.enabled else None
            changed = {"monitoring": wanted, "monitoring_position": at}
        case _:
            return attachments
    return tuple(
        replace(a, **changed) if a.sae_id == payload.sae_id and a.status == "attached" else a for a in attachments
    )


def _is_coming(attachment: AttachmentState, outcome: ev.SaeAttached | ev.AttachFailed) -> bool:
    return attachment.request_position == outcome.request_position and attachment.status == "attaching"


def leaves(attachments: Iterable[AttachmentState], sae_id: str) -> AttachmentState | None:
    """The attachment that a Detach removes: the attached one, else the one being attached, else the failed one.

    Anything else of the SAE, such as a move in progress, was never attached and is dropped.
    """
    order = ("attached", "attaching", "failed")
    mine = [a for a in attachments if a.sae_id == sae_id and a.status in order]
    return min(mine, key=lambda a: order.index(a.status), default=None)
