"""A hub on loopback that speaks the real one's HTTP: commits, lists, headers, redirects to a store, ranges.

    with HubServer() as hub:
        hub.publish("org/saes", {"layer.1/cfg.json": b"{}", "layer.1/sae_weights.safetensors": weights})
        hub.fault(on="store", cut_after=1000, times=1)      # see `Fault`

Files named *.safetensors, *.npz and *.pt are in large-file storage: their `resolve` answer is a redirect with a
signed query to a second origin (another port), as the real hub does it; all others are sent by the hub itself.
Everything that was asked is kept in `hub.requests`. Standard library only.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.fakes.hub_handler import LARGE, Handler, Server


@dataclass
class Fault:
    """What goes wrong with one kind of request; fields that are set are applied together."""

    on: str
    """info, tree, paths, head, get (`resolve`), cache (where a mirror's small files are), store (the signed address)
    or any."""
    path: str | None = None
    """Only for files whose path contains this."""
    times: int | None = None
    """How often; None: always."""
    after: int = 0
    """Requests of this kind that go well before."""
    status: int | None = None
    """Answered instead, with `code` as X-Error-Code and `body`."""
    code: str | None = None
    message: str | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Replaced headers; None: left out."""
    body: bytes | None = None
    location: str | None = None
    """Redirect (302) there."""
    drop: bool = False
    """Close the connection without an answer."""
    hang: float = 0.0
    """Seconds before the answer."""
    cut_after: int | None = None
    """Bytes of the body before the connection is closed."""
    surplus: int = 0
    """Bytes sent beyond the announced."""
    drip: float | None = None
    """Seconds between single bytes."""
    rate: int | None = None
    """Bytes a second."""
    corrupt: str | None = None
    """flip: one wrong byte; zero: right length, all zeros."""
    ignore_range: bool = False
    shift_range: int = 0
    """A 206 whose range starts that many bytes further on."""
    encode: str | None = None
    """Content-Encoding that is claimed."""


@dataclass
class Asked:
    """One request as it arrived."""

    kind: str
    method: str
    target: str
    headers: dict[str, str]
    at: float
    sent: int = 0
    """Bytes of body that were written."""


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Readable with this token only."""
    gated: bool = False


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class HubServer:
    """The hub and its store, each on a port of its own."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Asked] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._digests: dict[int, tuple[bytes, str, str]] = {}
        self._closing = threading.Event()
        self._hub = Server(self, store=False)
        self._store = Server(self, store=True)
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.store_url = f"http://127.0.0.1:{self._store.server_port}"
        self.path = ""
        """Of a mirror that is not at the root of its host; `url` ends in it."""
        self.copies: str | None = None
        """Address of the hub that this one is a mirror of: its `Link` headers name that one, and small files are
        where that one redirects to. None: it is no mirror, and names itself."""

    def __enter__(self) -> HubServer:
        for server in (self._hub, self._store):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def mirror(self, copies: str = "https://huggingface.co", path: str = "") -> None:
        """From now on it is a mirror of another hub, `path` below its own address."""
        self.copies, self.path = copies, path
        self.url += path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for server in (self._hub, self._store):
            server.shutdown()
            server.server_close()

    # — what it holds —

    def publish(
        self, repository_id: str, files: Mapping[str, bytes], *, revision: str = "main", token: str | None = None
    ) -> str:
        """A new commit with exactly these files, at the head of `revision`; its id."""
        text = "\n".join(f"{path} {git_id(content)}" for path, content in sorted(files.items()))
        commit = hashlib.sha1(f"{repository_id} {revision} {text}".encode(), usedforsecurity=False).hexdigest()
        repository = self.repositories.setdefault(repository_id, Repository())
        repository.commits[commit] = dict(files)
        repository.refs[revision] = commit
        repository.token = token
        return commit

    def fault(self, on: str, **changes: Any) -> Fault:
        """Let requests of the kind `on` go wrong from now on."""
        fault = Fault(on, **changes)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def asked(self, *kinds: str) -> list[Asked]:
        with self._lock:
            return [each for each in self.requests if not kinds or each.kind in kinds]

    def sent(self, *kinds: str) -> int:
        """Bytes of body that went out."""
        return sum(each.sent for each in self.asked(*kinds))

    # — for the handlers —

    def note(self, kind: str, handler: Handler) -> Asked:
        asked = Asked(
            kind, handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()}, time.monotonic()
        )
        with self._lock:
            self.requests.append(asked)
        return asked

    def fault_for(self, kind: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.on not in (kind, "any") or (fault.path is not None and fault.path not in path):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    if fault.times <= 0:
                        continue
                    fault.times -= 1
                return fault
        return None

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the server's end."""
        self._closing.wait(seconds)

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    def digests(self, content: bytes) -> tuple[str, str]:
        """sha256 and git id, computed once for each file."""
        known = self._digests.get(id(content))
        if known is None or known[0] is not content:
            known = self._digests[id(content)] = (content, hashlib.sha256(content).hexdigest(), git_id(content))
        return known[1], known[2]

    def stored(self, sha256: str) -> bytes | None:
        """The file with this digest, in whatever repository."""
        commits = (files for repository in self.repositories.values() for files in repository.commits.values())
        contents = (content for files in commits for content in files.values())
        return next((content for content in contents if self.digests(content)[0] == sha256), None)

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        """A file of a list, in the hub's words."""
        sha256, git = self.digests(content)
        entry: dict[str, Any] = {"type": "file", "oid": git, "size": len(content), "path": path}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry
