"""The life of the service and of its log: starts, stops, refusals, what was lost or erased."""

from __future__ import annotations

from typing import Literal

from .payload import Payload, Problem


class ActorStarted(Payload, frozen=True, kw_only=True):
    """The service took the log over; whatever lived in device memory is wanted but missing from here on."""

    version: str
    max_attachments: int = 1
    drain_seconds: float = 3.0


class ActorStopped(Payload, frozen=True, kw_only=True):
    """A clean stop: work that was under way was not to blame."""

    reason: str = "requested"


class SettingsReloaded(Payload, frozen=True, kw_only=True):
    """Settings were read again while the service ran. Tokens stand here by their names."""

    tokens_added: tuple[str, ...] = ()
    tokens_removed: tuple[str, ...] = ()
    tokens_changed: tuple[str, ...] = ()
    """Another token, or another role."""
    certificate_sha256: str | None = None
    """Of the file with the certificate in force; None: HTTP without TLS."""
    log_level: str = "warning"
    needs_restart: tuple[str, ...] = ()
    """Keys whose new values are not in force yet."""


class EffectInterrupted(Payload, frozen=True, kw_only=True):
    """An effect was under way when the process ended; it is run again, or given up after three deaths."""

    effect: Literal["load_model", "download", "import", "attach", "detach", "delete"]
    request_position: int
    attempt: int
    sae_id: str | None = None


class CommandRejected(Payload, frozen=True, kw_only=True):
    """A command that was understood and refused; under a flood only some are written."""

    command: str
    error: Problem
    sae_id: str | None = None
    not_recorded: int = 0
    """Refusals since the last one on record that were not written."""


class GpuLost(Payload, frozen=True, kw_only=True):
    """The device cannot be used any more by this process, which ends after this event."""

    detail: str


class PayloadRedacted(Payload, frozen=True, kw_only=True):
    redacted_position: int
    why: str


class LogTruncated(Payload, frozen=True, kw_only=True):
    known_position: int
    known_hash: str
    why: str
