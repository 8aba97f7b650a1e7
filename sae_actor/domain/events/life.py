"""The life of the service and of its log: starts, stops, refusals, what was lost or erased."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .payload import Payload, Problem


class LogFile(Struct, frozen=True, kw_only=True):
    """Which file `events.db` is. A copy is another file, and so is a restored one; a folder that was only renamed, or
    a volume in another container, holds the same."""

    device: str
    """`MAJOR:MINOR`, as in /proc/self/mountinfo."""
    inode: str
    file_system: str | None = None
    """Its id, as `stat -f` prints it; None: the file system has none."""

    def is_at(self, other: LogFile) -> bool:
        """Whether both are the same file.

        The kernel numbers devices as it finds them: after a reboot, or when a volume is mounted again (network, overlay
        and btrfs file systems have a number of each mount), the same file may be on a device of another number. So an
        equal id of the file system stands in for the number. No host name counts: containers change theirs.
        """
        same_place = self.device == other.device or (
            self.file_system is not None and self.file_system == other.file_system
        )
        return same_place and self.inode == other.inode


class ActorStarted(Payload, frozen=True, kw_only=True):
    """The service took the log over; whatever lived in device memory is wanted but missing from here on."""

    version: str
    max_attachments: int = 1
    drain_seconds: float = 3.0
    log_file: LogFile | None = None
    """None: the log has no file, or a version before there was this field took it over."""


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


class LogHead(Struct, frozen=True, kw_only=True):
    position: int
    hash: str


class LogForked(Payload, frozen=True, kw_only=True):
    """From here on this log has a history of its own: the log that it was copied from may go on elsewhere."""

    reason: Literal["copied", "restored", "imported"]
    """copied: `events.db` is not the file of the last start. restored, imported: the first start after `restore` or
    `log import`."""
    branch_id: str
    """32 hex digits. The event ids of streams begin with the first 8, as before with those of `parent_id`."""
    parent_id: str
    """The id of the log, or of the branch that it was until here."""
    parent_head: LogHead
    """The last event that both have."""
