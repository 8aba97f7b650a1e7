"""Who is let in: host name, origin and token are checked before any route is looked at."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from ..errors import BadRequestError, ForbiddenError, SAEError, UnauthorizedError
from .context import Context
from .problems import problem_response

OPEN_PATHS = frozenset({"/health", "/ready"})
_MAX_TOKEN = 1024


def guard(context: Context) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware that answers 400, 401 and 403, and writes the principal into the scope."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP:
                await app(scope, receive, send)
                return
            try:
                headers = scope["headers"]
                _check_host(_all(headers, b"host"), context.hosts)
                _check_origin(headers)
                who = _principal(scope, context.tokens)
            except SAEError as error:
                request: Request[Any, Any, Any] = Request(scope, receive, send)
                response = problem_response(request, error).to_asgi_response(app=None, request=request)
                await response(scope, receive, send)
                return
            scope["principal"] = who  # type: ignore[typeddict-unknown-key]
            await app(scope, receive, send)

        return checked

    return wrap


def _all(headers: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _hostname(netloc: str) -> str:
    """Without the port, in lower case; an IPv6 address keeps its brackets."""
    if netloc.startswith("["):
        return netloc.partition("]")[0].lower() + "]"
    return netloc.partition(":")[0].lower()


def _check_host(hosts: list[str], allowed: tuple[str, ...]) -> None:
    if len(hosts) != 1:
        raise BadRequestError("exactly one Host header is needed")
    if "*" not in allowed and _hostname(hosts[0]) not in allowed:
        raise ForbiddenError("this service does not answer to that host name")


def _check_origin(headers: Any) -> None:
    """A page of another site may not speak to us through its visitor's browser."""
    for origin in _all(headers, b"origin"):
        own = _all(headers, b"host")[0]
        if urlsplit(origin).netloc.lower() != own.lower():
            raise ForbiddenError("requests from other origins are not allowed")
    if any(site == "cross-site" for site in _all(headers, b"sec-fetch-site")):
        raise ForbiddenError("requests from other sites are not allowed")


def _principal(scope: Scope, tokens: tuple[str, ...]) -> str:
    if not tokens or scope["path"] in OPEN_PATHS:
        return "local"
    given = _all(scope["headers"], b"authorization")
    if b"token=" in scope["query_string"]:
        raise BadRequestError("a token does not belong into the address; use the Authorization header")
    if len(given) != 1 or len(given[0]) > _MAX_TOKEN or not given[0].lower().startswith("bearer "):
        raise UnauthorizedError("send one Authorization: Bearer header")
    token = given[0][7:].strip().encode("latin-1")
    # Every token is compared, so that the time says nothing about which one came close.
    if sum(hmac.compare_digest(token, each.encode()) for each in tokens) == 0:
        raise UnauthorizedError("the token is not known")
    return "token"
