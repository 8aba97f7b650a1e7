"""Access control: host name, origin, token and role are checked before any route.

    Host                   exactly one, and a name of ours
    Origin, Sec-Fetch-*    no page of another origin or site, unless `[server] cors_origins` lists it
    Authorization          the token of a grant; or the cookie of a login, which needs our own Origin to write
    role                   a viewer reads (GET, HEAD, OPTIONS, and routes that say so), an operator does the rest; a
                           user has the routes that say so, which is checked where they are run
    Content-Type           a body is application/json, or what its route says
    the query              no token, and nothing twice

It wraps the whole application, so that paths without a route are checked too. HEAD is answered as GET without the
body.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import SAEError
from ...limits import RequestThrottle
from ..operations import OPERATIONS
from .checks import READING, check_address, check_body, check_host, check_origin, header_values, listed_origin
from .headers import answer_preflight, harden, is_preflight
from .identity import caller_of, session_id_of
from .middleware import Middleware, on_start, refuse
from .policy import Policy


class Guard(Middleware):
    """Passes on only allowed requests, with the caller's `Grant` or None in the scope."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._open_routes = frozenset((each.method, each.path) for each in OPERATIONS if each.open)
        self._reading_routes = frozenset((each.method, each.path) for each in OPERATIONS if each.reads)
        self._media = [(each.method, _pattern(each.path), each.media) for each in OPERATIONS if each.media]
        # Two, so that reads never wait for a flood of commands. Probes and the page use none.
        self._reading, self._writing = RequestThrottle(), RequestThrottle()

    def _media_of(self, method: str, path: str) -> tuple[str, ...]:
        """The media types of the route's body, if it is not JSON."""
        found = (media for each, pattern, media in self._media if each == method and pattern.fullmatch(path))
        return next(found, ())

    async def handle(self, scope: Any, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        policy = self._policy
        listed = listed_origin(scope["headers"], policy)
        hardened = on_start(send, lambda message: harden(message, policy, listed))
        try:
            check_host(header_values(scope["headers"], b"host"), policy.hosts)
            check_address(scope["query_string"])
            check_origin(scope["headers"], policy)
            if listed is not None and is_preflight(scope):
                await answer_preflight(scope, hardened)
                return
            is_open = ("GET" if scope["method"] == "HEAD" else scope["method"], scope["path"]) in self._open_routes
            may_read = (scope["method"], scope["path"]) in self._reading_routes
            caller = caller_of(scope, policy, is_open, reads=may_read)
            check_body(scope, self._media_of(scope["method"], scope["path"]))
            scope["caller"] = caller
        except SAEError as error:
            await refuse(scope, receive, hardened, error)
            return
        reads = scope["method"] in READING
        if not (reads and is_open):
            await (self._reading if reads else self._writing).enter()
        session_id = session_id_of(scope, policy)
        if scope["method"] == "HEAD":
            await _head(next_app, scope, receive, hardened)
        elif caller is None:
            await next_app(scope, receive, hardened)
        else:
            right, seconds = (caller, None) if session_id is None else policy.sessions.lasting(session_id)
            await policy.sessions.open_requests.run(right, next_app, scope, receive, hardened, seconds=seconds)


def _pattern(path: str) -> re.Pattern[str]:
    """Of the addresses of a route."""
    return re.compile(re.sub(r"{\w+}", "[^/]+", path))


async def _head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """`app` answers it as GET; the client gets no body, and a stream ends where its body begins."""
    as_get: Any = {**scope, "method": "GET"}

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            if "path_template" in as_get:
                scope["path_template"] = as_get["path_template"]
            await send(message)
        elif answering.when() is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            answering.reschedule(0)  # last: it may not cut off the end of the answer

    try:
        async with asyncio.timeout(None) as answering:
            await app(as_get, receive, sending)
    except TimeoutError:
        if not answering.expired():
            raise
