"""Checks of a request before any route: host name, URL, body and origin. Each raises the error of its refusal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ...errors import BadRequestError, ForbiddenError, UnsupportedMediaTypeError
from .policy import Policy

_HOST = re.compile(r"([A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
"""A name or address, and a port. Frameworks disagree about anything else, so it is refused."""
Headers = Iterable[tuple[bytes, bytes]]
READING = frozenset({"GET", "HEAD", "OPTIONS"})
SECRET_PARAMETERS = frozenset({"token", "access_token"})
MAX_PARAMETERS = 64


def header_values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _hostname(netloc: str) -> str:
    """The host without the port, in lower case; an IPv6 address keeps its brackets."""
    if netloc.startswith("["):
        return netloc.partition("]")[0].lower() + "]"
    return netloc.partition(":")[0].lower()


def check_host(hosts: list[str], allowed: tuple[str, ...]) -> None:
    if len(hosts) != 1:
        raise BadRequestError("exactly one Host header is needed")
    named = _HOST.fullmatch(hosts[0])
    if named is None or int(named[2] or 0) > 65535:
        raise BadRequestError("the Host header does not name a host")
    if "*" not in allowed and _hostname(hosts[0]) not in allowed:
        raise ForbiddenError("this service does not serve that host name; see [server] hosts")


def check_address(query: bytes) -> None:
    """Refuse tokens in the URL, which ends up in histories and logs, and parameters given twice."""
    if not query:
        return
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise BadRequestError(f"the URL has too many parameters; at most {MAX_PARAMETERS} are allowed") from None
    names = [name for name, _ in pairs]
    if not SECRET_PARAMETERS.isdisjoint(map(str.lower, names)):
        raise BadRequestError("tokens are not accepted in the URL; send an Authorization header")
    if len(set(names)) != len(names):
        raise BadRequestError("a parameter was given more than once in the URL")


def check_body(scope: Any, media: Iterable[str] = ()) -> None:
    """A body must be declared as JSON: browsers let pages of other origins send that only after a preflight. `media`:
    what the route takes in its place, which is PUT alone: that takes a preflight too."""
    if scope["method"] in READING:
        return
    sent = header_values(scope["headers"], b"content-length") not in ([], ["0"])
    if sent or header_values(scope["headers"], b"transfer-encoding"):
        kind = ",".join(header_values(scope["headers"], b"content-type")).partition(";")[0].strip().lower()
        wanted = tuple(media) or ("application/json",)
        if kind not in wanted:
            raise UnsupportedMediaTypeError(f"send {', '.join(wanted)}, not {kind[:80] or 'nothing'}")


def listed_origin(headers: Headers, policy: Policy) -> str | None:
    origins = header_values(headers, b"origin")
    return origins[0] if len(origins) == 1 and origins[0] in policy.cors_origins else None


def is_own_origin(headers: Headers) -> bool:
    """True if there is one Origin, and it is the requested host."""
    origins, hosts = header_values(headers, b"origin"), header_values(headers, b"host")
    if len(origins) != 1 or not origins[0].startswith(("http://", "https://")):
        return False
    try:
        return urlsplit(origins[0]).netloc.lower() == hosts[0].lower()
    except ValueError:
        return False


def check_origin(headers: Headers, policy: Policy) -> None:
    """Refuse requests that a page of another origin sends through its visitor's browser."""
    if listed_origin(headers, policy) is not None:
        return
    if header_values(headers, b"origin") and not is_own_origin(headers):
        raise ForbiddenError("requests from other origins are not allowed")
    sites = set(header_values(headers, b"sec-fetch-site"))
    # A link on a page from another port of this host may lead here; requests of that page's scripts are refused.
    if "cross-site" in sites or ("same-site" in sites and header_values(headers, b"sec-fetch-mode") != ["navigate"]):
        raise ForbiddenError("requests from other sites are not allowed")
