"""Who is let in: host name, origin, token and role are checked before any route is looked at.

    Host                   exactly one, and a name of ours
    Origin, Sec-Fetch-*    no page of another origin or site, unless `[server] cors_origins` lists it
    Authorization          the token of a grant; in its place the cookie of a login, which needs our own Origin to write
    role                   a viewer reads (GET, HEAD, OPTIONS), an operator does the rest
    Content-Type           a body is application/json
    the query              no token, and nothing twice

It wraps the whole application, so that an address without a route is no way around it. HEAD is answered as GET is,
without the body.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from ..access import Grant
from ..errors import BadRequestError, ForbiddenError, SAEError, UnauthorizedError, UnsupportedMediaTypeError
from .context import Context
from .problems import problem_response
from .routes import TABLE
from .turnstile import Turnstile

_HOST = re.compile(r"([A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
"""A name or address, and a port: what a framework makes of anything else is not to be relied on."""

Headers = Iterable[tuple[bytes, bytes]]

MAX_TOKEN = 1024
READING = frozenset({"GET", "HEAD", "OPTIONS"})
SECRET_PARAMETERS = frozenset({"token", "access_token"})
MAX_PARAMETERS = 64

HARDENING = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)
"""On every answer that does not bring its own of these: what is not the page loads, frames and runs nothing."""

CORS_METHODS = "GET, POST, PUT, DELETE"
CORS_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, Last-Event-ID, Prefer"
CORS_EXPOSED = "ETag, Location, Log-Head, Preference-Applied, Retry-After"
CORS_SECONDS = "600"


class Caller(NamedTuple):
    """Who asks: the holder of a token, or anyone where none is asked for."""

    name: str
    role: str


ANYONE = Caller("local", "operator")


def guarded(app: ASGIApp, context: Context) -> ASGIApp:
    """`app` behind the checks: it is asked only what may be asked, and finds a `Caller` or None in the scope."""
    open_routes = frozenset((each.method, each.path) for each in TABLE if each.open)
    reading, writing = Turnstile(), Turnstile()
    # Two, so that who reads never stands behind a flood of commands; probes and the page stand behind nobody.

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        listed = _listed_origin(scope["headers"], context)

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                _harden(message, context, listed)
            await send(message)

        try:
            _check_host(_all(scope["headers"], b"host"), context.hosts)
            _check_address(scope["query_string"])
            _check_origin(scope["headers"], context)
            if listed is not None and _is_preflight(scope):
                await _answer_preflight(hardened)
                return
            is_open = ("GET" if scope["method"] == "HEAD" else scope["method"], scope["path"]) in open_routes
            caller = _caller(scope, context, is_open)
            _check_body(scope)
            scope["caller"] = caller  # type: ignore[typeddict-unknown-key]
        except SAEError as error:
            response = problem_response(request, error).to_asgi_response(app=None, request=request)
            await response(scope, receive, hardened)
            return
        reads = scope["method"] in READING
        if not (reads and is_open):
            await (reading if reads else writing).enter()
        session_id = _session_id(scope, context)
        if scope["method"] == "HEAD":
            await _head(app, scope, receive, hardened)
        elif session_id is None or caller is None:
            await app(scope, receive, hardened)
        else:
            with context.sessions.lasting(session_id) as ended:
                await _until(ended, app, scope, receive, hardened)

    return checked


async def _head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """`app` is asked for all of it, and its client leaves before the body."""
    asked: Any = {**scope, "method": "GET"}
    begun = asyncio.Event()

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            if "path_template" in asked:
                scope["path_template"] = asked["path_template"]
            await send(message)
        elif not begun.is_set():
            begun.set()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    await _until(begun, app, asked, receive, sending)


async def _until(ended: asyncio.Event, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """`app` is told that its client has left once `ended` is set; a stream that it sends ends then."""
    is_whole = True

    async def receiving() -> Any:
        asking, ending = asyncio.ensure_future(receive()), asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait((asking, ending), return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if ended.is_set() else asking.result()
        finally:
            asking.cancel()
            ending.cancel()

    async def sending(message: Message) -> None:
        nonlocal is_whole
        is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    await app(scope, receiving, sending)
    if not is_whole and ended.is_set():
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# — the answer —


def _harden(message: Any, context: Context, listed: str | None) -> None:
    given = message["headers"]
    names = {name for name, _ in given}
    headers = [*given, *(pair for pair in HARDENING if pair[0] not in names)]
    if context.cors_origins:
        headers.append((b"vary", b"Origin"))
    if listed is not None:
        headers.append((b"access-control-allow-origin", listed.encode("latin-1")))
        headers.append((b"access-control-expose-headers", CORS_EXPOSED.encode()))
    message["headers"] = headers


def _is_preflight(scope: Any) -> bool:
    return scope["method"] == "OPTIONS" and bool(_all(scope["headers"], b"access-control-request-method"))


async def _answer_preflight(send: Send) -> None:
    headers = {"allow-methods": CORS_METHODS, "allow-headers": CORS_HEADERS, "max-age": CORS_SECONDS}
    raw = [(b"access-control-" + name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


# — where it comes from —


def _all(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _hostname(netloc: str) -> str:
    """Without the port, in lower case; an IPv6 address keeps its brackets."""
    if netloc.startswith("["):
        return netloc.partition("]")[0].lower() + "]"
    return netloc.partition(":")[0].lower()


def _check_host(hosts: list[str], allowed: tuple[str, ...]) -> None:
    if len(hosts) != 1:
        raise BadRequestError("exactly one Host header is needed")
    named = _HOST.fullmatch(hosts[0])
    if named is None or int(named[2] or 0) > 65535:
        raise BadRequestError("the Host header names no host")
    if "*" not in allowed and _hostname(hosts[0]) not in allowed:
        raise ForbiddenError("this service does not answer to that host name")


def _check_address(query: bytes) -> None:
    """Addresses end up in histories and in the logs of others. Of two values of a parameter neither is taken."""
    if not query:
        return
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise BadRequestError(f"an address takes {MAX_PARAMETERS} parameters at most") from None
    names = [name for name, _ in pairs]
    if not SECRET_PARAMETERS.isdisjoint(map(str.lower, names)):
        raise BadRequestError("a token does not belong into the address; use the Authorization header")
    if len(set(names)) != len(names):
        raise BadRequestError("a parameter stands twice in the address")


def _check_body(scope: Any) -> None:
    """A body is JSON and says so: what a page may send without a preflight is not."""
    if scope["method"] in READING:
        return
    sent = _all(scope["headers"], b"content-length") not in ([], ["0"])
    if sent or _all(scope["headers"], b"transfer-encoding"):
        kind = ",".join(_all(scope["headers"], b"content-type")).partition(";")[0].strip().lower()
        if kind != "application/json":
            raise UnsupportedMediaTypeError(f"send application/json, not {kind[:80] or 'nothing'}")


def _listed_origin(headers: Headers, context: Context) -> str | None:
    origins = _all(headers, b"origin")
    return origins[0] if len(origins) == 1 and origins[0] in context.cors_origins else None


def is_own_origin(headers: Headers) -> bool:
    """True where there is one Origin, and it is the host that was asked."""
    origins, hosts = _all(headers, b"origin"), _all(headers, b"host")
    if len(origins) != 1 or not origins[0].startswith(("http://", "https://")):
        return False
    try:
        return urlsplit(origins[0]).netloc.lower() == hosts[0].lower()
    except ValueError:
        return False


def _check_origin(headers: Headers, context: Context) -> None:
    """A page of another origin may not speak to us through its visitor's browser."""
    if _listed_origin(headers, context) is not None:
        return
    if _all(headers, b"origin") and not is_own_origin(headers):
        raise ForbiddenError("requests from other origins are not allowed")
    sites = set(_all(headers, b"sec-fetch-site"))
    # A link from another port of this host may lead to the page; only what a script of it sends is refused.
    if "cross-site" in sites or ("same-site" in sites and _all(headers, b"sec-fetch-mode") != ["navigate"]):
        raise ForbiddenError("requests from other sites are not allowed")


# — who it is —


def cookie_name(scope: Any) -> str:
    """Cookies are shared by all ports of a host, so the name holds ours; `__Host-` binds it to this very host."""
    server = scope.get("server") or ("", 0)
    return f"{'__Host-' if scope['scheme'] == 'https' else ''}sae_actor_{server[1]}"


def session_ids_of(scope: Any) -> list[str]:
    """The cookies of logins: one, unless somebody has put another beside it."""
    name = cookie_name(scope)
    parts = (part.partition("=") for line in _all(scope["headers"], b"cookie") for part in line.split(";"))
    return [value.strip() for key, _, value in parts if key.strip() == name and len(value) <= MAX_TOKEN]


def _session_id(scope: Any, context: Context) -> str | None:
    """By which the caller is to be known; a token goes before it, and of two neither is taken."""
    if not context.access or _all(scope["headers"], b"authorization"):
        return None
    found = session_ids_of(scope)
    return found[0] if len(found) == 1 else None


def _caller(scope: Any, context: Context, is_open: bool) -> Caller | None:
    """Who asks; None on an open route for somebody unknown. Raises `UnauthorizedError`, `ForbiddenError`."""
    if not context.access:
        return ANYONE
    writes = scope["method"] not in READING
    session_id = _session_id(scope, context)
    if session_id is not None and writes and not is_own_origin(scope["headers"]):
        raise ForbiddenError("a login is good for the page itself only; send an Authorization header")
    try:
        if session_id is None:
            grant = _bearer(_all(scope["headers"], b"authorization"), context)
        else:
            grant = _session(session_id, context)
    except UnauthorizedError:
        if is_open:
            return None
        raise
    if writes and not is_open and grant.role != "operator":
        raise ForbiddenError(f"{grant.name} may read only: the token is a {grant.role}'s")
    return Caller(grant.name, grant.role)


def _bearer(given: list[str], context: Context) -> Grant:
    if len(given) != 1 or len(given[0]) > MAX_TOKEN or not given[0].lower().startswith("bearer "):
        raise UnauthorizedError("send one Authorization: Bearer header")
    grant = context.access.of(given[0][7:].strip(" \t").encode("latin-1"))
    if grant is None:
        raise UnauthorizedError("the token is not known")
    return grant


def _session(session_id: str, context: Context) -> Grant:
    grant = context.sessions.of(session_id)
    if grant is None:
        raise UnauthorizedError("the login has ended; log in again")
    return grant
