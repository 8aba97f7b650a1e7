"""Where files lie: the hub's own cache layout inside one folder, and which names may be put there.

    hub/models--org--name/blobs/<digest>             a complete, verified file
    hub/models--org--name/blobs/<digest>.incomplete  what has arrived so far; continued by the next try
    hub/models--org--name/snapshots/<commit>/<path>  link to the blob
    hub/models--org--name/refs/<revision>            the commit that a branch or tag stood for
    hub/models--org--name/.claims/<sae_id>.json      which of these files an SAE needs, see `claims`
    hub/converted/<key>/                             safetensors made of pickles, see `conversion`

`<digest>` is the sha256 of a file in large-file storage and the git blob id of any other, as the hub's ETag says.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname

from ..errors import DiskFullError, SAEDownloadError
from ..ports.durability import fsync_path

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")

CONVERTED = "converted"
MAX_FILE_BYTES = 1 << 40
"""No SAE file is a terabyte; a size beyond it is a lie."""


@dataclass(frozen=True)
class Repository:
    """The folder of one hub repository."""

    folder: Path

    @classmethod
    def of(cls, root: Path, repository_id: str) -> Repository:
        return cls(root / "--".join(("models", *repository_id.split("/"))))

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def claims(self) -> Path:
        return self.folder / ".claims"

    def blob(self, digest: str) -> Path:
        return self.blobs / digest

    def partial(self, digest: str) -> Path:
        return self.blobs / f"{digest}.incomplete"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def link(self, commit: str, path: str) -> Path:
        return self.snapshot(commit) / path

    def ref(self, revision: str) -> Path:
        return self.folder / "refs" / revision

    def commit_of(self, revision: str) -> str | None:
        """The commit that a download of this revision found, as far as it is on record here."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = self.ref(revision).read_text().strip()
        except OSError:
            return None
        return commit if COMMIT.fullmatch(commit) else None


def is_safe_path(path: str) -> bool:
    """Whether a file name of a repository stays inside the folder it is put into."""
    return (
        0 < len(path) <= 1024
        and not path.startswith("/")
        and _CONTROL.search(path) is None
        and path.isprintable()
        and all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in path.split("/"))
    )


def check_path(path: object) -> str:
    """`path`, if a hub may name a file so; an invalid name is not retried."""
    if not isinstance(path, str) or not is_safe_path(path):
        raise SAEDownloadError("The hub lists a file with a name that is not allowed", reason="unsafe_name")
    return path


def check_commit(commit: object) -> str:
    if not isinstance(commit, str) or COMMIT.fullmatch(commit) is None:
        raise SAEDownloadError("The hub names a commit that is not 40 hex digits", reason="bad_commit")
    return commit


def check_size(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FILE_BYTES:
        raise SAEDownloadError("The hub gives no size, or an impossible one", reason="bad_size")
    return size


def is_safe_revision(revision: str) -> bool:
    return _REVISION.fullmatch(revision) is not None and ".." not in revision and "//" not in revision


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` whole or not at all, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    fsync_path(temporary)
    temporary.replace(path)
    fsync_path(path.parent)


def link_blob(repository: Repository, commit: str, path: str, digest: str) -> None:
    """Let snapshots/<commit>/<path> lead to the blob, in one step."""
    link = repository.link(commit, path)
    link.parent.mkdir(parents=True, exist_ok=True)
    expected = repository.folder.resolve() / "snapshots" / commit / dirname(path)
    if not is_safe_path(path) or link.parent.resolve() != expected:
        raise SAEDownloadError("A folder of the cache is a link to elsewhere", reason="unsafe_name", file=path)
    text = os.path.relpath(repository.blob(digest), link.parent)
    if link.is_symlink() and os.readlink(link) == text:
        return
    temporary = link.with_name(f".{digest}.{os.getpid()}.tmp")
    temporary.symlink_to(text)
    temporary.replace(link)
    fsync_path(link.parent)


def refuse_full(folder: Path, what: str, needed: int, reserve_bytes: int) -> None:
    """`DiskFullError` unless the disk has room for what is `needed`, beyond the reserve."""
    free = max(0, shutil.disk_usage(folder).free - reserve_bytes)
    if needed > free:
        raise DiskFullError(
            f"The {what} needs {needed} bytes, and {free} are free for it",
            reason="no_space", needed_bytes=needed, free_bytes=free,
        )  # fmt: skip


def remove_folder(folder: Path) -> int:
    """Remove a folder with all that is in it; the bytes freed, 0 if there is none."""
    freed = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    if folder.is_dir():
        shutil.rmtree(folder)
    return freed


def remove_empty(folder: Path, stop: Path) -> None:
    """Remove `folder` and its parents up to, not including, `stop`, as far as they are empty."""
    while folder != stop and stop in folder.parents:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent


def blobs_bytes(root: Path) -> int:
    """Bytes of all blobs below the hub folder, finished or not, and of what was made of them."""
    total = 0
    for blob in (*root.glob("models--*/blobs/*"), *root.glob(f"{CONVERTED}/*/*")):
        with contextlib.suppress(FileNotFoundError):
            total += blob.lstat().st_size
    return total
