"""The caller: from a token or the cookie of a login, with its role."""

from __future__ import annotations

from typing import Any

from ...config.access import Grant
from ...errors import ForbiddenError, UnauthorizedError
from .checks import READING, header_values, is_own_origin
from .policy import Policy

MAX_TOKEN = 1024


ANYONE = Grant("local", "operator", b"")
"""The caller if no token is required."""


def cookie_name(scope: Any) -> str:
    """Cookies are shared by all ports of a host, so the name holds ours; `__Host-` binds it to this very host."""
    server = scope.get("server") or ("", 0)
    return f"{'__Host-' if scope['scheme'] == 'https' else ''}sae_actor_{server[1]}"


def session_ids_of(scope: Any) -> list[str]:
    """The cookies of logins: one, unless another one was injected."""
    name = cookie_name(scope)
    parts = (part.partition("=") for line in header_values(scope["headers"], b"cookie") for part in line.split(";"))
    return [value.strip() for key, _, value in parts if key.strip() == name and len(value) <= MAX_TOKEN]


def session_id_of(scope: Any, policy: Policy) -> str | None:
    """The session that identifies the caller. None if the request has a token, or two session cookies."""
    if not policy.access or header_values(scope["headers"], b"authorization"):
        return None
    found = session_ids_of(scope)
    return found[0] if len(found) == 1 else None


def caller_of(scope: Any, policy: Policy, is_open: bool, *, reads: bool = False) -> Grant | None:
    """The caller; None for an unknown one on an open route. reads: a viewer may call it, whatever its method. Raises
    `UnauthorizedError`, `ForbiddenError`."""
    if not policy.access:
        return ANYONE
    writes = scope["method"] not in READING
    session_id = session_id_of(scope, policy)
    if session_id is not None and writes and not is_own_origin(scope["headers"]):
        raise ForbiddenError("the login cookie works for the page only; send an Authorization header")
    try:
        if session_id is None:
            grant = _bearer(header_values(scope["headers"], b"authorization"), policy)
        else:
            grant = _session(session_id, policy)
    except UnauthorizedError:
        if is_open:
            return None
        raise
    # What of it a user may do is known once the route is.
    if writes and not (is_open or reads) and grant.role == "viewer":
        raise ForbiddenError(f"{grant.name} may only read: the token has the role {grant.role}")
    return grant


def _bearer(given: list[str], policy: Policy) -> Grant:
    if len(given) != 1 or len(given[0]) > MAX_TOKEN or not given[0].lower().startswith("bearer "):
        raise UnauthorizedError("send one Authorization: Bearer header")
    grant = policy.access.of(given[0][7:].strip(" \t").encode("latin-1"))
    if grant is None:
        raise UnauthorizedError("the token is not valid")
    return grant


def _session(session_id: str, policy: Policy) -> Grant:
    grant = policy.sessions.of(session_id)
    if grant is None:
        raise UnauthorizedError("the login has expired; log in again")
    return grant
