"""What the hub's answer to a HEAD says of one file, and how far such a request follows redirects.

The library's own function is not used: which redirects it follows differs between its releases (1.16: those without a
host, 1.33: those to the same host on any port, 2.x: those to the same origin), and what counts is the last answer of
the hub itself, before the redirect to where the bytes lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin

from msgspec import Struct

from ...errors import SAEDownloadError
from ..layout import DIGEST, check_commit, check_size
from .endpoint import CANONICAL, origin_of

MAX_REDIRECTS = 20
NO_END = "The hub redirects endlessly, or without an address"
_SIZE = re.compile(r"[0-9]{1,18}")
_LINKED = ("X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size")
"""With these a redirect says everything of the file it leads to, wherever that lies."""


class FileHead(Struct, frozen=True):
    """One file as the hub's headers tell of it, each checked for its form."""

    commit: str
    digest: str
    """sha256 in large-file storage, else the git blob id."""
    bytes: int
    address: str
    """The URL of the bytes; it may be signed and is never shown."""


def find_head(ask: Callable[[str], Any], url: str, path: str) -> FileHead:
    """The hub's last word on the file at `url`.

    `ask` sends a HEAD and follows no redirect, but refuses one without an address.
    Raises `SAEDownloadError` for what is missing or cannot be, and what `ask` raises.
    """
    for _ in range(MAX_REDIRECTS + 1):
        answer = ask(url)
        if not answer.has_redirect_location:
            return _file_head(answer.headers, path, url)
        target = urljoin(url, answer.headers["Location"])
        if not _is_hub(url, target) or all(name in answer.headers for name in _LINKED):
            return _file_head(answer.headers, path, target)
        url = target
    raise SAEDownloadError(NO_END, reason="redirect")


def _is_hub(asked: str, target: str) -> bool:
    """Whether a redirect from `asked` stays on the hub: a repository was renamed, a small file has another path."""
    scheme, host, _ = origin = origin_of(target)
    return origin == origin_of(asked) or (scheme == "https" and host in CANONICAL)


def _file_head(headers: Mapping[str, str], path: str, address: str) -> FileHead:
    commit = check_commit(headers.get("X-Repo-Commit"))
    etag = headers.get("X-Linked-Etag") or headers.get("ETag", "")
    digest = etag.removeprefix("W/").strip('"')
    if DIGEST.fullmatch(digest) is None:
        raise SAEDownloadError("The hub's ETag is not a digest", reason="bad_etag", file=path)
    # The length of a redirect is that of its own page.
    size = headers.get("X-Linked-Size", "" if "Location" in headers else headers.get("Content-Length", ""))
    return FileHead(commit, digest, check_size(int(size) if _SIZE.fullmatch(size) else None), address)
