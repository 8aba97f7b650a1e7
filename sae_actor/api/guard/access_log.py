"""Access log: every request is counted by route and status, timed, and written as a line.

It wraps the checks, so that refused requests are logged too. A line holds no query, no header and no body.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from time import perf_counter
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from ...telemetry.logs import ACCESS
from ...telemetry.metrics import Histogram, Labels
from .middleware import Middleware, on_start

access = logging.getLogger("sae_actor.access")
"""One line a request, at level INFO; the members of a line are `ACCESS`."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Replaces unknown methods and paths, so that clients cannot make the labels grow."""
GONE = "closed"
"""Replaces the status of a request whose client disconnected before the answer."""


class AccessLog(Middleware):
    """The outermost middleware; it counts since the process started."""

    def __init__(self) -> None:
        self.answered: Counter[Labels] = Counter()
        """Answered requests by method, route and status."""
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """Route → seconds until the answer began; the rest is not counted, since a stream may go on for days."""

    async def handle(self, scope: Any, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        began, status = perf_counter(), 0
        # The router replaces the path in the scope.
        method, path = scope["method"], scope["path"]

        def started(message: Any) -> None:
            nonlocal status
            status = message["status"]
            self.seconds[route_of(scope)].observe(perf_counter() - began)

        try:
            await next_app(scope, receive, on_start(send, started))
        finally:
            self.answered[method if method in METHODS else OTHER, route_of(scope), str(status or GONE)] += 1
            if access.isEnabledFor(logging.INFO):
                _log(scope, path, status, perf_counter() - began)


def route_of(scope: Scope) -> str:
    """The route as in the table, from the router; `OTHER` if no route matched."""
    return str(scope.get("path_template") or OTHER)


def _log(scope: Any, path: str, status: int, seconds: float) -> None:
    caller = scope.get("caller")
    values = (
        scope["method"],
        # Without line breaks, so that clients cannot inject lines into the log.
        path[:200].encode("unicode_escape").decode("ascii"),
        status,
        round(seconds * 1000, 1),
        None if caller is None else caller.name,
        scope.get("command_id"),
    )
    members = dict(zip(ACCESS, values, strict=True))
    who = f" by {values[4]}" if values[4] else ""  # an open route needs no caller
    access.info("%s %s %s in %s ms%s%s", *values[:4], who, f", command {values[5]}" if values[5] else "", extra=members)
