"""The whole of one download, in the child process: commit, list, choice, space, bytes, links, description.

Nothing is linked into a snapshot before every file is verified, and what `describe` refuses is removed again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname, join, relpath

import msgspec
from huggingface_hub import constants

from ...domain.refs import SaeFile
from ...domain.weights import WeightsFile, weights_sha256
from ...errors import DiskFullError, RepositoryNotFoundError, SAEDownloadError, SAEError
from ...formats import check_values, describe, weight_files
from ...formats.file_names import PICKLES
from ...formats.files import SaeFiles
from ...ports import OnProgress
from .. import claims as claimed
from .. import conversion
from ..claims import Claim, ClaimedFile, Claims
from ..digests import Stamp
from ..layout import DIGEST, Repository, blobs_bytes, link_blob, refuse_full, write_durably
from ..protocol import Done, DownloadJob, Placed
from ..removal import withdraw
from ..selection import choose, settings_names, target
from .meter import Meter
from .remote import RemoteFile, RemoteHub
from .transfer import Transfer, retried


class Fetch:
    """One download job; `send` takes the progress."""

    def __init__(self, job: DownloadJob, send: OnProgress) -> None:
        self._job = job
        self._root = Path(job.root)
        self._repository = Repository.of(self._root, job.repository_id)
        self._meter = Meter(send, "download", job.sae_id)
        self._hub = RemoteHub(job.patience, job.download_hosts)
        self._transfer = Transfer(self._hub, self._repository, job.patience, self._meter)

    def run(self) -> Done:
        """Every error is an `SAEError`, or an OSError of the disk."""
        job = self._job
        self._meter.phase("resolving")
        if constants.is_offline_mode():
            commit, listed = self._on_disk()
        else:
            commit = retried(partial(self._hub.commit, job.repository_id, job.revision), job.patience, self._meter)
            self._meter.phase("listing")
            listed = retried(partial(self._list, commit), job.patience, self._meter)
        by_path = {file.path: file for file in listed}
        found = choose(by_path, job.path)
        files = [by_path[path] for path in found.files]
        self._meter.total = sum(file.bytes for file in files)
        self._meter.phase("checking")
        self._check_space(files)
        claim = self._claim(commit, files)
        placed = self._place(claim, files)
        try:
            where = self._repository.snapshot(commit) / target([file.path for file in files], job.path)
            if found.pickled:
                claim, converted = self._convert(claim, placed, found.weights)
                placed.append(converted)
                where = Path(converted.at)
            self._meter.phase("describing")
            sae = describe(where, repository_id=job.repository_id)
            names = weight_files(where)
            # Once, here, while the bytes are still in the page cache: an attach may map them and not look again.
            check_values(where)
        except SAEError:
            withdraw(self._root, self._repository, job.sae_id, claim)
            raise
        self._complete(claim)
        base = found.path if found.path not in by_path else dirname(found.path)
        by_name = {relpath(each.file.path, base or "."): each.file for each in placed}
        return Done(
            commit=commit,
            files=tuple(placed),
            sae=sae,
            weights_sha256=weights_sha256((name, by_name[name].sha256) for name in names),
            weights_files=tuple(WeightsFile(by_name[name].path, by_name[name].sha256) for name in names),
        )

    def _convert(self, claim: Claim, placed: Sequence[Placed], pickle: str) -> tuple[Claim, Placed]:
        """The claim with what it has besides, and the safetensors made of `pickle`."""
        key = conversion.key_of(self._job.repository_id, [each.file for each in placed])
        claim = msgspec.structs.replace(claim, converted=key)
        self._store(claim)
        files = SaeFiles(self._repository.link(claim.commit, pickle), repository_id=self._job.repository_id)
        prefix = f"{dirname(pickle)}/" if dirname(pickle) else ""
        into = conversion.folder(self._root, key)
        working = partial(self._meter.phase, "converting")
        working()
        return claim, conversion.make(files, basename(pickle), into, prefix=prefix, working=working)

    # — what to fetch —

    def _list(self, commit: str) -> list[RemoteFile]:
        """The files among which the SAE is: the whole repository without a path, else as little as will do."""
        repository_id, path = self._job.repository_id, self._job.path
        if path is None:
            return self._hub.files(repository_id, commit)
        above = {dirname(path), dirname(dirname(path))}
        near = [join(folder, name) for folder in sorted(above) for name in sorted(settings_names(path))]
        files, folders = self._hub.some(repository_id, commit, [path, *near])
        if path in folders:
            known = {file.path for file in files}
            files += [file for file in self._hub.files(repository_id, commit, path) if file.path not in known]
        elif path not in {file.path for file in files}:
            raise RepositoryNotFoundError("The hub has no such path", reason="not_found", kind="path", path=path)
        return files

    def _on_disk(self) -> tuple[str, list[RemoteFile]]:
        """HF_HUB_OFFLINE: the commit and files that an earlier download left; their names are their digests."""
        job, repository = self._job, self._repository
        offline = SAEDownloadError("HF_HUB_OFFLINE is set, and the files are not here", reason="offline")
        commit = repository.commit_of(job.revision)
        if commit is None or job.force:
            raise offline
        files = []
        snapshot = repository.snapshot(commit)
        for link in sorted(snapshot.rglob("*")):
            if link.is_symlink() and DIGEST.fullmatch(digest := os.path.basename(os.readlink(link))):
                size = link.stat().st_size if link.exists() else 0
                files.append(RemoteFile(link.relative_to(snapshot).as_posix(), size, digest))
        if not files:
            raise offline
        return commit, files

    def _check_space(self, files: Sequence[RemoteFile]) -> None:
        """Refuse before the first byte what the quota or the disk cannot take."""
        self._root.mkdir(parents=True, exist_ok=True)
        needed = 0
        for file in files:
            if self._job.force or _size(self._repository.blob(file.digest)) != file.bytes:
                needed += max(0, file.bytes - (_size(self._repository.partial(file.digest)) or 0))
                needed += file.bytes if file.path.endswith(PICKLES) else 0  # what it is converted to
        refuse_full(self._root, "download", needed, self._job.reserve_bytes)
        if self._job.quota_bytes is not None and needed:
            used = blobs_bytes(self._root)
            if used + needed > self._job.quota_bytes:
                raise DiskFullError(
                    f"The download needs {needed} bytes; {used} of the quota of {self._job.quota_bytes} are used",
                    reason="quota", needed_bytes=needed, used_bytes=used, quota_bytes=self._job.quota_bytes,
                )  # fmt: skip

    # — putting it there —

    def _claim(self, commit: str, files: Sequence[RemoteFile]) -> Claim:
        """Claim the files before fetching any; leftovers of earlier tries that this one will not use are removed."""
        job = self._job
        claims = claimed.read(self._repository, job.sae_id) or self._no_claims()
        wanted = tuple(ClaimedFile(file.path, file.digest, file.bytes) for file in files)
        before = claims.of(job.request_position)
        fetched = before.fetched if before is not None and before.commit == commit else ()
        claim = Claim(request_position=job.request_position, commit=commit, files=wanted, fetched=fetched)
        claimed.write(self._repository, claims.put(claim))
        for stale in claims.claims:
            if not stale.complete and stale.request_position != job.request_position:
                withdraw(self._root, self._repository, job.sae_id, stale)
        return claim

    def _place(self, claim: Claim, files: Sequence[RemoteFile]) -> list[Placed]:
        """Every blob verified, then every link made; again if another SAE's deletion removed a blob meanwhile."""
        fetched = set(claim.fetched)
        for _ in range(3):
            found: list[tuple[RemoteFile, str, Stamp]] = []
            for file in files:
                anew = self._job.force and file.digest not in fetched
                sha256, stamp = self._transfer.obtain(self._job.repository_id, claim.commit, file, anew=anew)
                if anew:
                    fetched.add(file.digest)
                    self._store(msgspec.structs.replace(claim, fetched=tuple(sorted(fetched))))
                found.append((file, sha256, stamp))
            for file, _, _ in found:
                link_blob(self._repository, claim.commit, file.path, file.digest)
            if all(_is_there(self._repository, claim.commit, file, stamp) for file, _, stamp in found):
                return [
                    Placed(
                        SaeFile(file.path, file.bytes, sha256),
                        stamp,
                        str(self._repository.link(claim.commit, file.path)),
                    )
                    for file, sha256, stamp in found
                ]
        raise SAEDownloadError("The files are removed as soon as they are here", reason="removed")

    def _complete(self, claim: Claim) -> None:
        """From here on the files count as this SAE's, and other tools find the revision."""
        if self._job.revision != claim.commit:
            write_durably(self._repository.ref(self._job.revision), claim.commit.encode())
        done = msgspec.structs.replace(claim, complete=True, fetched=())
        claims = claimed.read(self._repository, self._job.sae_id) or self._no_claims()
        same = [each for each in claims.claims if each.commit == done.commit]
        claimed.write(self._repository, claims.without(same).put(done))

    def _store(self, claim: Claim) -> None:
        claims = claimed.read(self._repository, self._job.sae_id) or self._no_claims()
        claimed.write(self._repository, claims.put(claim))

    def _no_claims(self) -> Claims:
        return Claims(sae_id=self._job.sae_id, revision=self._job.revision)


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _is_there(repository: Repository, commit: str, file: RemoteFile, stamp: Stamp) -> bool:
    try:
        return Stamp.of(repository.link(commit, file.path)) == stamp
    except OSError:
        return False
