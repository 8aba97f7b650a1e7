"""One file from the hub to its blob: continued, counted, digested while it arrives, renamed when it is right."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ...errors import DiskFullError, SAEDownloadError
from ...formats.lfs import MAX_POINTER_BYTES, REMEDY, is_pointer
from ...ports.durability import fsync_path
from ..digests import BlobDigest, Stamp, feed
from ..layout import Repository
from ..protocol import Patience
from .meter import Meter
from .remote import RemoteFile, RemoteHub, TransientError

T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_BATCH_BYTES = 1 << 20
_BATCHES_AHEAD = 4
"""What may be in memory between the network and the disk: so much is lost when the process is killed."""
_WORTHLESS = ("integrity", "too_long")
"""Failures after which what arrived is thrown away: it is not the file, so the next try must not build on it."""
_BUSY_SECONDS = 0.2
"""How often to look whether another process has finished a file that both want."""


def retried(attempt: Callable[[], T], patience: Patience, meter: Meter) -> T:
    """The result of `attempt`, made again with growing waits while it is `TransientError`.

    `SAEDownloadError` (keyword `reason`) after `tries` in a row that brought nothing worth the name.
    """
    tries, mark = 0, meter.received
    while True:
        try:
            return attempt()
        except TransientError as failure:
            if meter.received - mark >= patience.worthwhile_bytes:
                tries, mark = 0, meter.received
            tries += 1
            if tries >= patience.tries:
                raise SAEDownloadError(failure.detail, reason=failure.reason, tries=tries) from None
            asked = failure.retry_after
            wait = patience.backoff_seconds * 2 ** (tries - 1) if asked is None else asked
            meter.wait(min(wait, patience.backoff_cap_seconds), failure.reason)


class Transfer:
    """Brings single files of one repository into its blobs."""

    def __init__(self, hub: RemoteHub, repository: Repository, patience: Patience, meter: Meter) -> None:
        self._hub, self._repository, self._patience, self._meter = hub, repository, patience, meter
        self._writer = ThreadPoolExecutor(1)

    def obtain(self, repository_id: str, commit: str, file: RemoteFile, *, anew: bool) -> tuple[str, Stamp]:
        """sha256 and stamp of the file's verified blob, fetched unless it is there. `anew`: fetched in any case."""
        blob = self._repository.blob(file.digest)
        self._meter.start(file.path)
        if not anew and (there := self._verified(blob, file)) is not None:
            return there
        with self._held(file) as descriptor:
            if not anew and (there := self._verified(blob, file)) is not None:
                self._repository.partial(file.digest).unlink(missing_ok=True)
                return there
            try:
                sha256 = self._fill(descriptor, repository_id, commit, file)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                self._repository.partial(file.digest).unlink(missing_ok=True)
                raise DiskFullError("The disk is full", reason="no_space", file=file.path) from None
            except SAEDownloadError as error:
                if error.fields.get("reason") in _WORTHLESS:
                    self._repository.partial(file.digest).unlink(missing_ok=True)
                raise
            os.fsync(descriptor)
            os.replace(self._repository.partial(file.digest), blob)
            fsync_path(self._repository.blobs)
            return sha256, Stamp.of(descriptor)

    def _verified(self, blob: Path, file: RemoteFile) -> tuple[str, Stamp] | None:
        """sha256 and stamp of a blob that is there and right; one that is not right will be replaced."""
        try:
            descriptor = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            stamp = Stamp.of(descriptor)
            if stamp.bytes != file.bytes:
                return None
            digest = BlobDigest(file.bytes, git=file.git)
            feed(digest, descriptor, report=lambda count: self._meter.add(count, received=False))
        finally:
            os.close(descriptor)
        if digest.name == file.digest:
            return digest.sha256, stamp
        self._meter.start(file.path)
        return None

    @contextmanager
    def _held(self, file: RemoteFile) -> Iterator[int]:
        """The unfinished file, open and ours alone; two SAEs of a repository may want the same file."""
        path = self._repository.partial(file.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _locked(path)) is None:
            self._meter.wait(_BUSY_SECONDS, "shared_file")
        try:
            yield descriptor
        finally:
            # Nothing worth continuing; but never the file of a later holder.
            if os.fstat(descriptor).st_size == 0 and _is_at(descriptor, path):
                path.unlink()
            os.close(descriptor)

    def _fill(self, descriptor: int, repository_id: str, commit: str, file: RemoteFile) -> str:
        """Complete the partial file and compare its digest; the sha256. A wrong one leaves nothing."""
        continued = True
        while True:
            filling = _Filling(descriptor, file, self._meter, self._writer)
            continued = continued and filling.have > 0
            retried(partial(self._receive, repository_id, commit, file, filling), self._patience, self._meter)
            if filling.name == file.digest:
                return filling.sha256
            os.ftruncate(descriptor, 0)
            self._meter.start(file.path)
            if not continued:
                raise SAEDownloadError("The bytes do not match the hub's list", reason="integrity", file=file.path)
            # What an earlier process left may have been the wrong part (a power cut): once more, from nothing.
            continued = False

    def _receive(self, repository_id: str, commit: str, file: RemoteFile, filling: _Filling) -> None:
        if filling.have == file.bytes:
            return
        url = self._hub.address(repository_id, commit, file)
        try:
            self._read(url, file, filling)
        except TransientError as failure:
            if failure.reason == "bad_range":
                filling.restart()
            raise
        finally:
            filling.settle()
        if filling.have < file.bytes:
            raise TransientError("cut", "The hub ended the body early")

    def _read(self, url: str, file: RemoteFile, filling: _Filling) -> None:
        with self._hub.body(url, filling.have) as answer:
            self._agree(answer, file, filling)
            since, mark = time.monotonic(), filling.arrived
            for chunk in answer.iter_raw():
                filling.append(chunk)
                elapsed = time.monotonic() - since
                if elapsed >= self._patience.slow_seconds:
                    if (filling.arrived - mark) / elapsed < self._patience.slow_bytes:
                        raise TransientError("stalled", "The hub sends too slowly")
                    since, mark = time.monotonic(), filling.arrived

    def _agree(self, answer: Any, file: RemoteFile, filling: _Filling) -> None:
        """Compare the answer's status and headers with the request, before any of its bytes."""

        def refuse(what: str, reason: str) -> SAEDownloadError:
            return SAEDownloadError(f"The hub's answer has {what}", reason=reason, file=file.path)

        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise refuse("an encoding that was not requested", "encoding")
        length = answer.headers.get("Content-Length")
        if answer.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or tuple(map(int, found.groups())) != (filling.have, file.bytes - 1, file.bytes):
                raise refuse("another range than requested", "bad_range")
        elif answer.status_code == 200:
            filling.restart()
        else:
            raise refuse(f"status {answer.status_code}", "protocol")
        if length is not None and length != str(file.bytes - filling.have):
            if answer.status_code == 200 and length.isdigit() and int(length) <= MAX_POINTER_BYTES < file.bytes:
                _refuse_pointer(b"".join(answer.iter_raw()), file)
            raise refuse("another length than listed", "bad_size")


def _refuse_pointer(content: bytes, file: RemoteFile) -> None:
    """What a mirror sends that was made by a clone without its large files."""
    if is_pointer(content):
        what = f"What the hub sends for {file.path} {REMEDY}"
        raise SAEDownloadError(what, reason="lfs_pointer", file=file.path)


def _locked(path: Path) -> int | None:
    """Descriptor of the file at `path`, locked for this process; None while another one holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us may have renamed or removed it: then it is no longer the file at this path.
        if _is_at(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


class _Filling:
    """The bytes of a partial file so far, and their running digest.

    A thread of its own writes and digests (both leave the interpreter's lock) while the next bytes arrive, so
    `arrived` runs ahead of `have` until `settle`.
    """

    def __init__(self, descriptor: int, file: RemoteFile, meter: Meter, writer: ThreadPoolExecutor) -> None:
        self._descriptor, self._file, self._meter, self._writer = descriptor, file, meter, writer
        self._digest = BlobDigest(file.bytes, git=file.git)
        self._batch: list[bytes] = []
        self._batched = 0
        self._writing: deque[Future[None]] = deque()
        if os.fstat(descriptor).st_size > file.bytes:
            os.ftruncate(descriptor, 0)
        self.have = feed(self._digest, descriptor, report=lambda count: meter.add(count, received=False))
        self.arrived = self.have

    def append(self, chunk: bytes) -> None:
        """Take what arrived; an OSError of the disk is raised here or by `settle`, a few pieces late."""
        if self.arrived + len(chunk) > self._file.bytes:
            raise SAEDownloadError("The hub sends more than it lists", reason="too_long", file=self._file.path)
        self.arrived += len(chunk)
        self._batch.append(chunk)
        self._batched += len(chunk)
        self._meter.add(len(chunk), received=True)
        if self._batched >= _BATCH_BYTES:
            self._hand_over()

    def settle(self) -> None:
        """Wait until everything that arrived is in the file."""
        self._hand_over()
        while self._writing:
            self._writing.popleft().result()

    def restart(self) -> None:
        """Forget what is there: the server sends the file from its beginning."""
        if self.arrived:
            self.settle()
            os.ftruncate(self._descriptor, 0)
            self._digest = BlobDigest(self._file.bytes, git=self._file.git)
            self.have = self.arrived = 0
            self._meter.start(self._file.path)

    def _hand_over(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        self._writing.append(self._writer.submit(self._write, batch))
        while len(self._writing) > _BATCHES_AHEAD:
            self._writing.popleft().result()

    def _write(self, batch: list[bytes]) -> None:
        view = memoryview(b"".join(batch))  # one large piece: each call gives up the interpreter's lock once
        while view:
            written = os.pwrite(self._descriptor, view, self.have)
            self._digest.update(view[:written])
            self.have += written
            view = view[written:]

    @property
    def name(self) -> str:
        return self._digest.name

    @property
    def sha256(self) -> str:
        return self._digest.sha256
