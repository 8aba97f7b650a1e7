"""How the fake hub answers one request: routes, ranges, and what a `Fault` does to the answer."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from tests.fakes.hub_server import Asked, Fault, HubServer, Repository

PAGE = 1000
SIGNATURE = "signature-canary-3141"
LARGE = (".safetensors", ".npz", ".pt", ".bin")
_PIECE = 1 << 20
_REPOSITORY = r"(?P<repository>[^/]+(?:/[^/]+)?)"
_INFO = re.compile(rf"/api/models/{_REPOSITORY}/revision/(?P<revision>.+)")
_TREE = re.compile(rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
_PATHS = re.compile(rf"/api/models/{_REPOSITORY}/paths-info/(?P<revision>.+)")
_FILE = re.compile(rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_CACHED = re.compile(r"/api/resolve-cache/models/(?P<repository>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")

_STORED = re.compile(r"/stored(?P<path>/.+)")


class _AnsweredError(Exception):
    """The request has its answer; nothing more is to be sent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: HubServer, *, store: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.store = hub, store

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what the tests are about: no trace of them on standard error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    asked: Asked

    def log_message(self, format: str, *args: Any) -> None:  # the base class names it so
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    # — routes —

    def _route(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode()) if length else {}
        with contextlib.suppress(_AnsweredError):
            if self.server.store:
                self._serve_store(path)
                return
            own = self.server.hub.path
            path = path.removeprefix(own) if path.startswith(f"{own}/") else f"/outside{path}"
            if found := _INFO.fullmatch(path):
                self._serve_info(found["repository"], found["revision"])
            elif found := _TREE.fullmatch(path):
                self._serve_tree(found["repository"], found["revision"], found["folder"] or "", parse_qs(parts.query))
            elif found := _PATHS.fullmatch(path):
                self._serve_paths(found["repository"], found["revision"], form.get("paths", []))
            elif found := _CACHED.fullmatch(path):
                self._serve_cached(found["repository"], found["revision"], found["path"])
            elif found := _STORED.fullmatch(path):
                self._serve_store(found["path"])
            elif found := _FILE.fullmatch(path):
                self._serve_file(found["repository"], found["revision"], found["path"])
            else:
                self._begin("other", path)
                raise self._refused(404, "")

    def _serve_info(self, repository_id: str, revision: str) -> None:
        fault = self._begin("info", repository_id)
        repository = self._open(repository_id)
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise self._refused(404, "RevisionNotFound")
        self._json({"_id": "0", "id": repository_id, "sha": commit}, fault)

    def _serve_tree(self, repository_id: str, revision: str, folder: str, query: dict[str, list[str]]) -> None:
        fault = self._begin("tree", repository_id)
        files = self._files(repository_id, revision)
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in sorted(files) if path.startswith(prefix)]
        if folder and not inside:
            raise self._refused(404, "EntryNotFound")
        entries = self._entries(files, inside, prefix, recursive=query.get("recursive", [""])[0].lower() == "true")
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(entries):
            named = self.server.hub.copies or self.server.hub.url
            base = f"{named}/api/models/{repository_id}/tree/{revision}/{quote(folder)}"
            more["Link"] = f'<{base}?recursive=true&cursor={start + PAGE}>; rel="next"'
        self._json(entries[start : start + PAGE], fault, more)

    def _entries(
        self, files: dict[str, bytes], inside: list[str], prefix: str, *, recursive: bool
    ) -> list[dict[str, Any]]:
        folders = {path[: i.start()] for path in inside for i in re.finditer("/", path) if i.start() >= len(prefix)}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in sorted(folders)
        ]
        entries += [self.server.hub.entry(path, files[path]) for path in inside]
        return entries if recursive else [e for e in entries if "/" not in e["path"][len(prefix) :]]

    def _serve_paths(self, repository_id: str, revision: str, paths: list[str]) -> None:
        fault = self._begin("paths", repository_id)
        files = self._files(repository_id, revision)
        entries: list[dict[str, Any]] = [self.server.hub.entry(path, files[path]) for path in paths if path in files]
        for path in paths:
            if any(file.startswith(f"{path}/") for file in files):
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        self._json(entries, fault)

    def _serve_file(self, repository_id: str, revision: str, path: str) -> None:
        hub = self.server.hub
        fault = self._begin("head" if self.command == "HEAD" else "get", path)
        files = self._files(repository_id, revision)
        commit = hub.repositories[repository_id].refs.get(revision, revision)
        if path not in files:
            raise self._refused(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = files[path]
        sha256, git = hub.digests(content)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "ETag": '"0"'}
            headers["Location"] = f"{hub.store_url}/{sha256}/{quote(path)}?Signature={SIGNATURE}"
            self._send(302, headers, b"", fault)
        elif hub.copies is not None:
            headers["Location"] = f"{hub.copies}/api/resolve-cache/models/{repository_id}/{commit}/{quote(path)}"
            self._send(307, headers, b"", fault)
        else:
            self._body(content, headers | {"ETag": f'"{git}"'}, fault)

    def _serve_cached(self, repository_id: str, revision: str, path: str) -> None:
        fault = self._begin("cache", path)
        content = self._files(repository_id, revision)[path]
        etag = self.server.hub.digests(content)[1]
        self._body(content, {"X-Repo-Commit": revision, "Accept-Ranges": "bytes", "ETag": f'"{etag}"'}, fault)

    def _serve_store(self, path: str) -> None:
        fault = self._begin("store", path)
        sha256 = path.split("/")[1]
        content = self.server.hub.stored(sha256)
        if content is None:
            raise self._refused(404, "")
        self._body(content, {"Accept-Ranges": "bytes", "ETag": f'"{sha256}"'}, fault)

    # — answers —

    def _begin(self, kind: str, path: str) -> Fault | None:
        """Note the request and do what its fault does before an answer; that may be all of it."""
        hub = self.server.hub
        self.asked = hub.note(kind, self)
        fault = hub.fault_for(kind, path)
        if fault is None:
            return None
        if fault.hang:
            hub.pause(fault.hang)
        if fault.drop or hub.closing:
            self.close_connection = True
            raise _AnsweredError
        if fault.location is not None:
            self._send(302, {"Location": fault.location}, b"", fault)
            raise _AnsweredError
        if fault.status is not None:
            extra = {"X-Error-Message": fault.message} if fault.message else {}
            self._send(fault.status, {"X-Error-Code": fault.code or "", **extra}, fault.body or b"", fault)
            raise _AnsweredError
        return fault

    def _open(self, repository_id: str) -> Repository:
        repository = self.server.hub.repositories.get(repository_id)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or (repository.token is not None and repository.token != given):
            raise self._refused(404 if given else 401, "RepoNotFound")
        return repository

    def _files(self, repository_id: str, revision: str) -> dict[str, bytes]:
        repository = self._open(repository_id)
        if repository.gated and self.asked.kind in ("head", "get"):
            raise self._refused(403, "GatedRepo")
        files = repository.commits.get(repository.refs.get(revision, revision))
        if files is None:
            raise self._refused(404, "RevisionNotFound")
        return files

    def _refused(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> _AnsweredError:
        self._send(status, {**({"X-Error-Code": code} if code else {}), **(headers or {})}, b"{}", None)
        return _AnsweredError()

    def _json(self, value: Any, fault: Fault | None, headers: Mapping[str, str] | None = None) -> None:
        text = fault.body if fault is not None and fault.body is not None else json.dumps(value).encode()
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, text, fault)

    def _body(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """The file, or the range of it that was asked for, with what is wrong about it."""
        if fault is not None and fault.body is not None:
            content = fault.body
        elif fault is not None and fault.corrupt == "zero":
            content = bytes(len(content))
        elif fault is not None and fault.corrupt == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or (fault is not None and fault.ignore_range):
            self._send(200, headers, content, fault)
            return
        start = int(asked[1])
        if start >= len(content):
            self._send(416, headers | {"Content-Range": f"bytes */{len(content)}"}, b"", fault)
            return
        start += fault.shift_range if fault is not None else 0
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, headers | {"Content-Range": span}, memoryview(content)[start:], fault)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes | memoryview, fault: Fault | None) -> None:
        whole = {**headers, "Content-Length": str(len(body))}
        if fault is not None and fault.encode is not None:
            whole["Content-Encoding"] = fault.encode
        changed = dict(fault.headers) if fault is not None else {}
        sent = {name: value for name, value in whole.items() if name.lower() not in {n.lower() for n in changed}}
        self.send_response(status)
        for name, value in (*sent.items(), *changed.items()):
            if value is not None:
                self.send_header(name, value)
        if "Content-Length" not in sent and changed.get("Content-Length") is None:
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self._write(body, fault)

    def _write(self, body: bytes | memoryview, fault: Fault | None) -> None:
        hub = self.server.hub
        view = memoryview(body)
        if fault is not None and fault.surplus:
            view = memoryview(bytes(view) + bytes(fault.surplus))
        end = len(view) if fault is None or fault.cut_after is None else min(fault.cut_after, len(view))
        piece = _PIECE
        if fault is not None and fault.drip is not None:
            piece = 1
        elif fault is not None and fault.rate is not None:
            piece = max(1, fault.rate // 50)
        with contextlib.suppress(OSError):
            for at in range(0, end, piece):
                if hub.closing:
                    break
                self.wfile.write(view[at : min(at + piece, end)])
                self.asked.sent += min(piece, end - at)
                if fault is not None and fault.drip is not None:
                    hub.pause(fault.drip)
                elif fault is not None and fault.rate is not None:
                    hub.pause(piece / fault.rate)
        if end < len(view) or (fault is not None and fault.surplus):
            self.close_connection = True
