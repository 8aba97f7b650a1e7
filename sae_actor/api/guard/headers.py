"""Headers on every answer: hardening, and CORS for the origins that are listed."""

from __future__ import annotations

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
CORS_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, Last-Event-ID, Prefer"
CORS_EXPOSED = "ETag, Location, Log-Head, Preference-Applied, Retry-After"
CORS_SECONDS = "600"


def harden(message: Any, policy: Policy, listed: str | None) -> None:
    given = message["headers"]
    names = {name for name, _ in given}
    headers = [*given, *(pair for pair in HARDENING if pair[0] not in names)]
    if policy.cors_origins:
        headers.append((b"vary", b"Origin"))
    if listed is not None:
        headers.append((b"access-control-allow-origin", listed.encode("latin-1")))
        headers.append((b"access-control-expose-headers", CORS_EXPOSED.encode()))
    message["headers"] = headers


def is_preflight(scope: Any) -> bool:
    return scope["method"] == "OPTIONS" and bool(header_values(scope["headers"], b"access-control-request-method"))


async def answer_preflight(send: Send) -> None:
    headers = {"allow-methods": CORS_METHODS, "allow-headers": CORS_HEADERS, "max-age": CORS_SECONDS}
    raw = [(b"access-control-" + name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
