"""Addresses that a hub's answers name, rebased onto the endpoint that is configured.

A mirror passes on what its hub wrote: `Link` headers and redirects name that hub, or the mirror without its port or
path. A configured mirror must be used, and is often the only reachable host.
"""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit, urlunsplit

CANONICAL = ("huggingface.co", "www.huggingface.co", "hub-ci.huggingface.co", "hf.co")
"""Hosts of the hub itself. The hosts of its files are others (`cdn-lfs.hf.co`), which a mirror may well send to."""

_API = ("/api/models/", "/api/resolve-cache/")
"""Paths that only a hub serves."""
_RESOLVE = "/resolve/"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; ValueError for an invalid port."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


class Endpoint:
    """What HF_ENDPOINT names: an origin and, of some mirrors, a path on it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.origin = origin_of(self.url)
        self._path = urlsplit(self.url).path
        self._is_mirror = self.origin[1] not in CANONICAL

    def page(self, asked: str, link: str) -> str:
        """The page that a `Link` header of the answer from `asked` names: always on the endpoint.

        ValueError for an invalid URL.
        """
        target = urljoin(asked, link)
        path = urlsplit(target).path
        if self._holds(target):
            return self._at(target, path[len(self._path) :])
        return self._at(target, _from(path, _API) or path)

    def redirect(self, asked: str, location: str) -> str:
        """Where a `Location` of the answer from `asked` leads.

        What only a hub serves is on the endpoint, whichever host is named, and so is everything a mirror takes from the
        hub itself; files may be on other hosts. ValueError for an invalid URL.
        """
        target = urljoin(asked, location)
        if self._holds(target):
            return target
        scheme, host, _ = origin_of(target)
        path = urlsplit(target).path
        if (api := _from(path, _API)) is not None:
            # Of the hub's own two hosts either may answer for the other.
            return self._at(target, api) if self._is_mirror or host not in CANONICAL else target
        if self._is_mirror and host in CANONICAL and scheme in _DEFAULT_PORTS:
            return self._at(target, path)
        if origin_of(target) == self.origin and _RESOLVE in path:
            return self._at(target, path)
        return target

    def _holds(self, target: str) -> bool:
        return origin_of(target) == self.origin and urlsplit(target).path.startswith(f"{self._path}/")

    def _at(self, target: str, path: str) -> str:
        """`path` of a hub, and the query of `target`, on the endpoint."""
        own = urlsplit(self.url)
        return urlunsplit((own.scheme, own.netloc, f"{own.path}{path}", urlsplit(target).query, ""))


def _from(path: str, marks: tuple[str, ...]) -> str | None:
    """`path` from the first of `marks` in it on: before it is the path of the host that wrote the URL."""
    found = [at for mark in marks if (at := path.find(mark)) >= 0]
    return path[min(found) :] if found else None
