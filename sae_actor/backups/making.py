"""Backups being made: of a running service, and of the folder of a stopped one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from .. import __version__
from ..domain.evolve import evolve
from ..domain.state import EMPTY, State
from ..errors import LogUnusableError, NotReadyError
from ..eventlog import SqliteLog
from ..eventlog.audit.histories import folder_history
from ..eventlog.checkpoint import NAME as CHECKPOINT
from ..eventlog.checkpoint import Checkpoint, read_checkpoint
from ..eventlog.inspection import reading
from ..eventlog.schema import NAME as DATABASE
from ..hub.kept_files import KeptFile, files_of
from ..hub.layout import refuse_full
from ..ports import Clock, Head
from ..ports.clock import SystemClock
from .contents import FORMAT, RESTORING, ArchiveMember, Manifest, listed_model, listed_saes, members
from .tar import written

PREFIX, SUFFIX = "backup.", ".tmp"
"""Of the folder for what is set aside."""
RESERVE_BYTES = 64 << 20
"""Free disk that a backup leaves to the log, which grows meanwhile."""


class FolderBackup:
    """The port `Backup`: what was set aside for one. `done` is called when it is closed."""

    def __init__(
        self, aside: Path, manifest: Manifest, members: Iterable[ArchiveMember], done: Callable[[], None] = lambda: None
    ) -> None:
        self.manifest = manifest
        self._aside = aside
        self._members = members
        self._done: Callable[[], None] | None = done

    @property
    def head(self) -> Head:
        return self.manifest.head

    @property
    def name(self) -> str:
        mark = (self.manifest.branch_id or self.manifest.log_id)[:8]
        return f"sae-actor-{mark}-{self.head.position}.tar"

    def parts(self) -> AsyncIterator[bytes]:
        return written(self._members, self.manifest, self._aside)

    def close(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            # Second names of files, and a copy of the log: unlinked in an instant.
            shutil.rmtree(self._aside, ignore_errors=True)
            done()


class ServiceBackups:
    """The port `Backups` of a running service: one at a time.

    folder: the data folder; a log that was opened for reading leaves it as it is. state: of now.
    """

    def __init__(self, log: SqliteLog, folder: Path, state: Callable[[], State], clock: Clock) -> None:
        self._log = log
        self._folder = folder
        self._state = state
        self._clock = clock
        self._read_only = log.read_only
        self._busy = False

    async def begin(self, *, saes: bool) -> FolderBackup:
        if self._busy:
            raise NotReadyError("another backup is being taken", retry_after=5)
        self._busy = True
        aside = None
        try:
            aside = _folder_aside(None if self._read_only else self._folder)
            needed = await self._log.size()
            await asyncio.to_thread(refuse_full, aside, "copy of the log", needed, RESERVE_BYTES)
            head = await self._log.backup(aside / "log")
            # Of a moment after the head: what came in between is in no event of the copy, and in nobody's way.
            state = self._state()
            found = await asyncio.to_thread(self._members, aside, state, saes=saes)
        except BaseException:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            self._free()
            raise
        manifest = _manifest(state, self._log.log_id, head, self._clock, saes=saes, witnessed=True)
        return FolderBackup(aside, manifest, found, self._free)

    def _members(self, aside: Path, state: State, *, saes: bool) -> list[ArchiveMember]:
        links = None if self._read_only else aside / "files"
        if links is not None:
            links.mkdir()
        kept = _kept(self._folder, state, saes=saes)
        return [*_log_in(aside / "log", witnessed=True), *members(self._folder, kept, links)]

    def _free(self) -> None:
        self._busy = False


@asynccontextmanager
async def folder_backup(folder: Path, *, saes: bool) -> AsyncIterator[FolderBackup]:
    """The backup of a folder without a service. Raises `LogHeldError` while one runs, and the errors of `inspect`.

    What is not witnessed here is not in the backup either: without a `head.checkpoint` it has none.
    """
    async with folder_history(folder) as history:
        state, head = EMPTY, None
        for event in history.events:
            state = evolve(state, event)
            head = Head(event.position, event.hash)
        if head is None:
            raise LogUnusableError(f"the log in {folder} is empty: there is nothing to back up")
        witnessed = bool(read_checkpoint(folder, history.log_id))
        aside = _folder_aside(None)
        try:
            copy = aside / "log"
            copy.mkdir()
            with reading(folder / DATABASE) as source, contextlib.closing(sqlite3.connect(copy / DATABASE)) as target:
                source.backup(target)
            if witnessed:
                Checkpoint.create(copy, history.log_id, head).close()
            found = [*_log_in(copy, witnessed=witnessed), *members(folder, _kept(folder, state, saes=saes), None)]
            manifest = _manifest(state, history.log_id, head, SystemClock(), saes=saes, witnessed=witnessed)
            yield FolderBackup(aside, manifest, found)
        except (sqlite3.Error, OSError) as error:
            raise LogUnusableError(f"the log in {folder} cannot be copied: {error}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed backup had set aside, and the empty folder of a restore that was killed at its end."""
    for left in (*folder.glob(f"{PREFIX}*{SUFFIX}"), folder / RESTORING):
        shutil.rmtree(left, ignore_errors=True)


def _folder_aside(inside: Path | None) -> Path:
    """In the data folder, where files can have second names; or where temporary files go."""
    try:
        return Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=inside))
    except OSError as error:
        raise LogUnusableError(f"a backup cannot be begun: {error.strerror}") from None


def _log_in(copy: Path, *, witnessed: bool) -> list[ArchiveMember]:
    names = (DATABASE, CHECKPOINT) if witnessed else (DATABASE,)
    return [ArchiveMember(name, copy / name) for name in names]


def _kept(folder: Path, state: State, *, saes: bool) -> Iterable[KeptFile]:
    """The files of the SAEs on record, each once."""
    complete = [record for record in state.saes.values() if record.sae is not None] if saes else ()
    return {file.name: file for record in complete for file in files_of(folder / "hub", record)}.values()


def _manifest(state: State, log_id: str, head: Head, clock: Clock, *, saes: bool, witnessed: bool) -> Manifest:
    return Manifest(
        format=FORMAT,
        made_by=f"sae-actor {__version__}",
        time=clock.now(),
        log_id=log_id,
        branch_id=state.branch_id,
        head=head,
        witnessed=witnessed,
        model=listed_model(state),
        saes=listed_saes(state, included=saes),
    )
