"""Access log: every request is counted by route and status, timed, and written as a line.

It wraps the checks, so that refused requests are logged too. A line holds no query, no header and no body.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from time import perf_counter
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from ...telemetry.logs import ACCESS
from ...telemetry.metrics import Histogram, Labels

access = logging.getLogger("sae_actor.access")
"""One line a request, at level INFO; the members of a line are `ACCESS`."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Replaces unknown methods and paths, so that clients cannot make the labels grow."""
GONE = "closed"
"""Replaces the status of a request whose client disconnected before the answer."""


class Requests:
    """Of one life of the process."""

    def __init__(self) -> None:
        self.answered: Counter[Labels] = Counter()
        """By method, route and status."""
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """By route, until the answer began: a stream may go on for days."""

    def answer_began(self, route: str, seconds: float) -> None:
        self.seconds[route].observe(seconds)

    def answer_ended(self, method: str, route: str, status: str) -> None:
        self.answered[method if method in METHODS else OTHER, route, status] += 1


def access_log_middleware(app: ASGIApp, requests: Requests) -> ASGIApp:
    """`app`, its requests counted in `requests`."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        began, status = perf_counter(), 0
        # The router leaves another one in the scope.
        path = scope["path"]

        def sending(message: Message) -> object:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                requests.answer_began(route_of(scope), perf_counter() - began)
            return send(message)

        try:
            await app(scope, receive, sending)  # type: ignore[arg-type]  # it gives back what `send` gives
        finally:
            requests.answer_ended(scope["method"], route_of(scope), str(status or GONE))
            if access.isEnabledFor(logging.INFO):
                _log(scope, path, status, perf_counter() - began)

    return watched


def route_of(scope: Scope) -> str:
    """The route as in the table, from the router; `OTHER` if no route matched."""
    return str(scope.get("path_template") or OTHER)


def _log(scope: Any, path: str, status: int, seconds: float) -> None:
    caller = scope.get("caller")
    values = (
        scope["method"],
        _one_line(path),
        status,
        round(seconds * 1000, 1),
        None if caller is None else caller.name,
        scope.get("command_id"),
    )
    told = dict(zip(ACCESS, values, strict=True))
    who = f" by {values[4]}" if values[4] else ""  # an open route needs no caller
    access.info("%s %s %s in %s ms%s%s", *values[:4], who, f", command {values[5]}" if values[5] else "", extra=told)


def _one_line(path: str) -> str:
    """Clients cannot inject lines into the log."""
    return path[:200].encode("unicode_escape").decode("ascii")
