"""Access control: host name, origin, token and role are checked before any route.

    Host                   exactly one, and a name of ours
    Origin, Sec-Fetch-*    no page of another origin or site, unless `[server] cors_origins` lists it
    Authorization          the token of a grant; or the cookie of a login, which needs our own Origin to write
    role                   a viewer reads (GET, HEAD, OPTIONS, and routes that say so), an operator does the rest; a
                           user has the routes that say so, which is checked where they are run
    Content-Type           a body is application/json
    the query              no token, and nothing twice

It wraps the whole application, so that paths without a route are checked too. HEAD is answered as GET without the
body.
"""

from __future__ import annotations

import asyncio
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
        # Two, so that reads never wait for a flood of commands. Probes and the page use none.
        self._reading, self._writing = RequestThrottle(), RequestThrottle()

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
            check_body(scope)
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
        elif session_id is None:
            await policy.open_requests.run(caller, next_app, scope, receive, hardened)
        else:
            with policy.sessions.lasting(session_id) as ended:
                await _until(ended, next_app, scope, receive, hardened)


async def _head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """`app` answers it as GET; the client gets no body."""
    as_get: Any = {**scope, "method": "GET"}
    answered = asyncio.Event()

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            if "path_template" in as_get:
                scope["path_template"] = as_get["path_template"]
            await send(message)
        elif not answered.is_set():
            answered.set()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    await _until(answered, app, as_get, receive, sending)


async def _until(ended: asyncio.Event, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Once `ended` is set, `app` sees a disconnected client, and ends a stream that it sends."""
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
