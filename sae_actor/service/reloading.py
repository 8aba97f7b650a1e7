"""What SIGHUP reads again: who holds a token and what each may have, the certificate, the level of the service's log.
The rest of the settings waits for a restart."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator

import msgspec

from ..api import Context
from ..api.guard.identity import ANYONE
from ..config import Deployment
from ..config.access import Access, Grant
from ..domain.events import SettingsReloaded
from ..telemetry import logs

RELOADED = {"server.token", "server.tokens", "server.tokens_file", "server.log_level"}
"""Keys that need no restart; files that others name are read again too."""


def reload(before: Deployment, after: Deployment, context: Context, tls: ssl.SSLContext | None) -> SettingsReloaded:
    """Put what may change into force; what is then on record. Raises `OSError` where the certificate has gone since
    it was checked, with nothing changed."""
    if tls is not None and after.tls is not None:
        # Connections that are open keep theirs.
        tls.load_cert_chain(*after.tls)
    change = change_of(context.access, after.access)
    withdrawn = withdrawn_by(context.access, after.access)
    context.use(after.access)
    context.sessions.withdraw(withdrawn)
    server = after.settings.server
    logs.set_up(before.settings.server.log_format, server.log_level)
    return msgspec.structs.replace(
        change,
        log_level=server.log_level,
        certificate_sha256=None if after.tls is None else hashlib.sha256(after.tls[0].read_bytes()).hexdigest(),
        needs_restart=tuple(sorted(key for key in changed_keys(before, after) if key not in RELOADED)),
    )


def withdrawn_by(before: Access, after: Access) -> list[Grant]:
    """Grants that hold no longer as they were; without any before, the one that anybody had."""
    held = before.grants or ((ANYONE,) if after else ())
    return [grant for grant in held if grant not in after.grants]


def change_of(before: Access, after: Access) -> SettingsReloaded:
    old, new = ({grant.name: grant for grant in access.grants} for access in (before, after))
    return SettingsReloaded(
        tokens_added=tuple(name for name in new if name not in old),
        tokens_removed=tuple(name for name in old if name not in new),
        tokens_changed=tuple(
            name for name, grant in new.items() if name in old and (grant, grant.quota) != (old[name], old[name].quota)
        ),
    )


def changed_keys(before: Deployment, after: Deployment) -> Iterator[str]:
    """`section.key` of each setting with another value."""
    for section in msgspec.structs.fields(before.settings):
        old, new = getattr(before.settings, section.name), getattr(after.settings, section.name)
        for key in msgspec.structs.fields(old):
            if getattr(old, key.name) != getattr(new, key.name):
                yield f"{section.name}.{key.name}"
