"""Headers on every answer: hardening, and CORS for the origins that are listed."""

from __future__ import annotations

import re
from typing import Any

from litestar.types import Send

from .checks import header_values
from .policy import Policy

HARDENING = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)
"""Added to every answer that does not set them itself. So answers other than the page load, frame and run nothing."""
CORS_METHODS = "GET, POST, PUT, DELETE"
CORS_EXPOSED = "Allow, ETag, Location, Log-Head, Preference-Applied, Retry-After, WWW-Authenticate"
CORS_SECONDS = "600"
_ASKED = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
"""Names of headers: anything else is not repeated in an answer."""


def harden(message: Any, policy: Policy, listed: str | None) -> None:
    given = [*message["headers"]]
    names = {name for name, _ in given}
    headers = [*given, *(pair for pair in HARDENING if pair[0] not in names)]
    if policy.cors_origins:
        varies = [b"Origin", *(value for name, value in given if name == b"vary")]
        headers = [*(pair for pair in headers if pair[0] != b"vary"), (b"vary", b", ".join(varies))]
    if listed is not None:
        headers.append((b"access-control-allow-origin", listed.encode("latin-1")))
        headers.append((b"access-control-expose-headers", CORS_EXPOSED.encode()))
    message["headers"] = headers


def is_preflight(scope: Any) -> bool:
    return scope["method"] == "OPTIONS" and bool(header_values(scope["headers"], b"access-control-request-method"))


async def answer_preflight(scope: Any, send: Send) -> None:
    """All headers that it asks for: clients send their own (`x-stainless-*`), and a listed origin is trusted."""
    requested = ", ".join(header_values(scope["headers"], b"access-control-request-headers"))
    headers = {"allow-methods": CORS_METHODS, "max-age": CORS_SECONDS}
    if _ASKED.fullmatch(requested):
        headers["allow-headers"] = requested
    raw = [(b"access-control-" + name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"vary", b"Access-Control-Request-Headers"))
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
