"""The hub over HTTP, through huggingface_hub: commit, file list, headers and body of one file.

The library brings the session with its endpoint, token, offline mode and proxies. What it leaves out is done here, in
hooks of that session, so that it holds for every request and every redirect: which origins may be talked to, that a
token goes to none but the hub's own, and that a refusal becomes an error of this package before the library sleeps as
long as a server demands. Lists are decoded strictly: a hub may lie.
Only the child process imports it.
"""

from __future__ import annotations

import datetime
import importlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import quote, urljoin

import msgspec
from huggingface_hub import constants, get_session, hf_hub_url, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not in __all__
from msgspec import Struct

from ...errors import ForbiddenError, GatedError, RepositoryNotFoundError, SAEDownloadError
from ..layout import COMMIT, SHA256, check_commit, check_path, check_size
from ..protocol import Patience
from .endpoint import Endpoint, origin_of
from .head import MAX_REDIRECTS, NO_END, find_head

_http: Any = importlib.import_module(type(get_session()).__module__.partition(".")[0])
"""The HTTP library of this huggingface_hub: httpx, or its successor under another name."""

T = TypeVar("T")

MAX_LISTED = 200_000
MAX_PAGES = 2_000
MAX_ANSWER_BYTES = 64 << 20


class TransientError(Exception):
    """Something that may be better in a while. `reason` is what a failure in the end is put down to."""

    def __init__(self, reason: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.retry_after = reason, detail, retry_after


class RemoteFile(Struct, frozen=True):
    """One file of a repository as its list names it."""

    path: str
    bytes: int
    digest: str
    """sha256 in large-file storage, else the git blob id: name of the blob, and what its bytes must hash to."""

    @property
    def git(self) -> bool:
        return SHA256.fullmatch(self.digest) is None


class _Info(Struct):
    sha: str = ""


class _Large(Struct):
    oid: str
    size: int


class _Entry(Struct):
    """A line of a file list, as the hub writes it."""

    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Large | None = None


_INFO = msgspec.json.Decoder(_Info)
_ENTRIES = msgspec.json.Decoder(list[_Entry])


class RemoteHub:
    """A session with the hub that HF_ENDPOINT names."""

    def __init__(self, patience: Patience, download_hosts: Sequence[str]) -> None:
        self._patience = patience
        self._endpoint = Endpoint(constants.ENDPOINT)
        # A mirror keeps its files on another port of its own host as often as on the same.
        self._hosts = (self._endpoint.origin[1], *(host.lower() for host in download_hosts))
        self._models = f"{constants.ENDPOINT}/api/models"
        template = get_session()

        def factory() -> Any:
            return type(template)(
                event_hooks={
                    "request": [self._guard, *template.event_hooks["request"]],
                    "response": [*template.event_hooks["response"], _refuse, self._rebase],
                },
                follow_redirects=True,
                max_redirects=MAX_REDIRECTS,
                timeout=patience.request_seconds,
            )

        set_client_factory(factory)

    # — requests to the hub —

    def commit(self, repository_id: str, revision: str) -> str:
        """The commit that the revision stands for now."""
        url = f"{self._models}/{repository_id}/revision/{quote(revision, safe='')}?expand=sha"
        text, _ = self._ask("GET", url)
        return check_commit(_decoded(_INFO, text).sha)

    def files(self, repository_id: str, commit: str, folder: str | None = None) -> list[RemoteFile]:
        """Every file below `folder`, or of the repository."""
        below = f"/{quote(folder, safe='')}" if folder else ""
        url: str | None = f"{self._models}/{repository_id}/tree/{commit}{below}?recursive=true&expand=false"
        files: list[RemoteFile] = []
        pages = 0
        while url is not None:
            text, url = self._ask("GET", url)
            files += [_remote_file(entry) for entry in _decoded(_ENTRIES, text) if entry.type == "file"]
            pages += 1
            if len(files) > MAX_LISTED or pages > MAX_PAGES:
                raise SAEDownloadError("The repository lists too many files", reason="too_many_files")
        return files

    def some(self, repository_id: str, commit: str, paths: Sequence[str]) -> tuple[list[RemoteFile], list[str]]:
        """Those of `paths` that are there: the files, and the names of the folders."""
        form = {"paths": list(paths), "expand": "false"}
        text, _ = self._ask("POST", f"{self._models}/{repository_id}/paths-info/{commit}", form)
        entries = _decoded(_ENTRIES, text)
        files = [_remote_file(entry) for entry in entries if entry.type == "file"]
        return files, [check_path(entry.path) for entry in entries if entry.type == "directory"]

    def address(self, repository_id: str, commit: str, file: RemoteFile) -> str:
        """The URL of the bytes, after the headers agreed with the list; it may be signed and is never shown."""
        url = hf_hub_url(repository_id, file.path, revision=commit)
        with self._asking():
            found = find_head(self._head, url, file.path)
        if found.commit != commit:
            raise SAEDownloadError("The hub answered for another commit", reason="moved", file=file.path)
        if found.digest != file.digest:
            raise SAEDownloadError("The hub's ETag is not the listed digest", reason="bad_etag", file=file.path)
        if found.bytes != file.bytes:
            raise SAEDownloadError("The hub's size is not the listed size", reason="bad_size", file=file.path)
        return found.address

    @contextmanager
    def body(self, url: str, offset: int) -> Iterator[Any]:
        """An open GET for the bytes from `offset`, read with `iter_raw`; its status is the caller's to check."""
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        timeout = self._patience.stall_seconds
        with _transport(), get_session().stream("GET", url, headers=headers, timeout=timeout) as answer:
            yield answer

    # — inside —

    def _head(self, url: str) -> Any:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        return get_session().head(url, headers=headers, follow_redirects=False)

    def _ask(self, method: str, url: str, form: dict[str, Any] | None = None) -> tuple[bytes, str | None]:
        """The answer's text, and the URL of the next page, if any."""
        text = bytearray()
        with self._asking(), get_session().stream(method, url, headers=build_hf_headers(), data=form) as answer:
            for chunk in answer.iter_bytes():
                text += chunk
                if len(text) > MAX_ANSWER_BYTES:
                    raise SAEDownloadError("The hub's answer does not end", reason="protocol")
            following = answer.links.get("next", {}).get("url")
            try:
                return bytes(text), self._endpoint.page(str(answer.url), following) if following else None
            except ValueError:
                raise SAEDownloadError("The hub's next page has no URL", reason="protocol") from None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One exchange that ends, whatever the server does: a byte a minute would outlast any read timeout."""

        def expired(_signal: int, _frame: FrameType | None) -> None:
            raise TransientError("timeout", "The hub took too long to answer")

        before = signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, self._patience.request_seconds)
        try:
            with _transport():
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _guard(self, request: Any) -> None:
        """Refuse requests to other hosts than a hub may redirect to, and send the token only to the hub's origin."""
        origin = origin_of(str(request.url))
        if origin == self._endpoint.origin:
            return
        scheme, host, port = origin
        allowed = any(host == each or host.endswith(f".{each}") or f"{host}:{port}" == each for each in self._hosts)
        # Plain HTTP only if the hub itself is plain: a mirror on a closed network, a test.
        if (
            not allowed
            or scheme not in {"https", self._endpoint.origin[0]}
            or (_is_address(host) and host not in self._hosts)
        ):
            raise SAEDownloadError("The hub redirects to a place that is not allowed", reason="redirect")
        request.headers.pop("authorization", None)
        request.headers.pop("cookie", None)

    def _rebase(self, response: Any) -> None:
        """Hook on every answer: let a redirect to the hub that a mirror copies lead to the mirror."""
        if not response.has_redirect_location:
            return
        asked, location = str(response.request.url), response.headers["Location"]
        try:
            target = self._endpoint.redirect(asked, location)
        except ValueError:
            raise SAEDownloadError(NO_END, reason="redirect") from None
        if target == urljoin(asked, location):
            return
        if target == asked:
            named = origin_of(urljoin(asked, location))[1]
            raise SAEDownloadError(
                f"{self._endpoint.origin[1]} does not serve this and redirects to {named}, which is not the "
                "endpoint: set HF_ENDPOINT to it if it may be asked",
                reason="redirect",
            )
        response.headers["Location"] = target


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _remote_file(entry: _Entry) -> RemoteFile:
    path = check_path(entry.path)
    kept = entry if entry.lfs is None else entry.lfs
    if (COMMIT if entry.lfs is None else SHA256).fullmatch(kept.oid) is None:
        raise SAEDownloadError("The hub lists a file without a digest", reason="bad_digest", file=path)
    return RemoteFile(path, check_size(kept.size), kept.oid)


def _refuse(response: Any) -> None:
    """Hook on every answer: an error of ours for every refusal, before the library reacts to it."""
    status, headers = response.status_code, response.headers
    if status < 400:
        return
    code = headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        raise GatedError("The repository is gated; request access on its page and set HF_TOKEN", reason="gated")
    kinds = {"RepoNotFound": "repository", "RevisionNotFound": "revision", "EntryNotFound": "path"}
    if code in kinds:
        kind = kinds[code]
        raise RepositoryNotFoundError(f"The hub has no such {kind}, or it is private", reason="not_found", kind=kind)
    if status == 401:
        raise RepositoryNotFoundError(
            "The hub requires a valid token, or has no such repository", reason="auth_required"
        )
    if status == 403:
        raise ForbiddenError("The hub refuses access", reason="forbidden")
    if status in (404, 410):
        raise RepositoryNotFoundError("The hub has no such repository, revision or path", reason="not_found")
    if status == 429:
        raise TransientError("rate_limited", "The hub limits the rate of requests", _retry_after(headers))
    if status == 408 or status >= 500:
        raise TransientError("hub_unavailable", f"The hub answers {status}", _retry_after(headers))
    if status == 416:
        raise TransientError("bad_range", "The hub refused to resume the file")
    raise SAEDownloadError(f"The hub answers {status}", reason="http", http_status=status)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After: a number or a date; None for anything else."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return max(0.0, (at - datetime.datetime.now(datetime.UTC)).total_seconds())


@contextmanager
def _transport() -> Iterator[None]:
    """Errors of the HTTP library as ours; their messages hold URLs and headers and are dropped."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise SAEDownloadError("HF_HUB_OFFLINE is set, and the files are not here", reason="offline") from None
    except (_http.TooManyRedirects, _http.UnsupportedProtocol, _http.InvalidURL):
        raise SAEDownloadError(NO_END, reason="redirect") from None
    except _http.TimeoutException:
        raise TransientError("timeout", "The hub does not answer in time") from None
    except _http.HTTPError as error:
        raise TransientError(
            "connection", f"The connection to {_host_of(error)} failed ({type(error).__name__})"
        ) from None


def _host_of(error: _http.HTTPError) -> str:
    """The host's name alone: the address may be signed."""
    try:
        return str(error.request.url.host)
    except RuntimeError:  # it happened before there was a request
        return "the hub"


def _decoded(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """The answer as the hub's protocol has it; a login page or JSON of another shape is an error."""
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise SAEDownloadError("The hub's answer does not follow its protocol", reason="protocol") from None
