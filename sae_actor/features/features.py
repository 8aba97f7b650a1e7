"""`Features`: what the service asks the directory, and the files of labels in `labels/` that it is made of.

What the log has on record is what counts: a file is durable before its event, and the directory follows both.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from ..domain.events import LabelSource
from ..domain.measuring.state import RunState
from ..domain.rules.attachments import described, known
from ..domain.state import LabelFile, SaeRecord, State
from ..errors import BadRequestError, DiskFullError, InternalError, SAEError
from ..ports import Hub
from ..ports.durability import disk_failure, fsync_path, is_full, receive
from .directory import OWN, PROFILE, FeatureDirectory, FeatureLabel, FeaturePage, KnownFeature, Sort, outdated
from .lines import Labelled, entries
from .matching import Matching
from .own import digest, own_entries
from .profiles import counts, newest

logger = logging.getLogger(__name__)
T = TypeVar("T")

FOLDER = "labels"
BEGUN = ".tmp"
UNKEPT = "The labels cannot be kept"
CACHED = 16
"""SAEs whose labels are held in memory."""


class LabelCounts(Struct, frozen=True, kw_only=True):
    """What a file of labels has."""

    source: str
    sha256: str
    labels: int
    features: int
    sources: tuple[LabelSource, ...]


class Features:
    def __init__(
        self, folder: Path, hub: Hub, state: Callable[[], State], upload_bytes: int, *, read_only: bool = False
    ) -> None:
        self.directory = FeatureDirectory(folder, read_only=read_only)
        self.upload_bytes = upload_bytes
        self.changing = asyncio.Lock()
        """Held while files, log and directory are brought together."""
        self._files = folder / FOLDER
        self._hub = hub
        self._state = state
        self._read_only = read_only
        self._labels: dict[str, dict[int, str]] = {}
        self._looked: dict[str, str] = {}
        """SAE → the weights that its folder was looked at for."""
        self._changes = 0
        """How often the labels changed: what was read before a change is not held."""
        self.profile_rows: Callable[[str], Iterator[dict[str, Any]]] | None = None
        """The rows of a run, by its id. Raises `RunNotFoundError`."""

    def close(self) -> None:
        self.directory.close()

    # — reading —

    async def labels(self, sae_id: str) -> Mapping[int, str]:
        """Feature → label; held in memory. Empty if they cannot be read: labels stop nothing."""
        found = self._labels.get(sae_id)
        if found is None:
            changes = self._changes
            try:
                await self._look(sae_id)
                found = await asyncio.to_thread(self.directory.labels, sae_id)
            except (SAEError, sqlite3.Error) as error:
                logger.warning("the labels of %s cannot be read: %s", sae_id, error)
                return {}
            if changes == self._changes:
                while len(self._labels) >= CACHED:
                    del self._labels[next(iter(self._labels))]
                self._labels[sae_id] = found
        return found

    async def search(
        self, sae_id: str, q: str = "", *, sort: Sort = "index", limit: int = 50, after: int | None = None
    ) -> FeaturePage:
        await self._look(sae_id)
        return await self._run(lambda: self.directory.search(sae_id, q, sort=sort, limit=limit, after=after))

    async def feature(self, sae_id: str, feature: int) -> KnownFeature:
        await self._look(sae_id)
        return await self._run(lambda: self.directory.feature(sae_id, feature))

    async def exported(self, sae_id: str, source: str | None) -> AsyncIterator[list[FeatureLabel]]:
        pages = self.directory.exported(sae_id, source)
        while (page := await self._run(lambda: next(pages, None))) is not None:
            yield page

    def kept(self, sha256: str) -> Path:
        """Where a file of labels is, by its digest."""
        return self._files / sha256

    # — writing —

    async def receive(self, body: AsyncIterator[bytes]) -> Path:
        """Stream a body to disk; where it is then. Raises as `durability.receive`."""
        coming = self._files / f"{uuid.uuid4().hex}{BEGUN}"
        await receive(body, coming, self.upload_bytes)
        return coming

    async def counted(self, coming: Path, sae_id: str, source: str | None) -> LabelCounts:
        """Read a file that has come, and count what it says of this SAE. Raises what `lines.entries` does."""
        record = known(self._state(), sae_id)
        described(record)
        return await asyncio.to_thread(_counts, coming, record, source, self.upload_bytes)

    async def keep(self, coming: Path, counts: LabelCounts) -> None:
        """Move the file to where it stays, durably. Hold `changing`, until it is on record."""

        def move() -> None:
            fsync_path(coming)
            coming.rename(self.kept(counts.sha256))
            fsync_path(coming.parent)
            fsync_path(coming.parent.parent)

        try:
            await asyncio.to_thread(move)
        except OSError as error:
            raise disk_failure(error, UNKEPT) from None

    async def follow(self, *, without: str | None = None) -> None:
        """Bring the directory to what is on record, and remove files that nothing on record names. Hold `changing`.

        without: an SAE that is being deleted.
        """
        state = self._state()
        labels = {sae_id: files for sae_id, files in state.labels.items() if sae_id != without}
        saes = {sae_id: record for sae_id, record in state.saes.items() if sae_id != without}
        try:
            await self._run(lambda: self._follow(labels, saes, state.runs))
        finally:
            self._changed()
            if without is not None:
                self._looked.pop(without, None)

    async def profiled(self, run_id: str) -> None:
        """Take over what a run of kind `profile` has found: its rows are durable, and its end goes on record next."""
        state = self._state()
        run = state.runs.get(run_id)
        record = None if run is None or not run.saes else state.saes.get(run.saes[0].sae_id)
        if run is None or record is None or not counts(run, record):
            return
        if (known := newest(state.runs.values(), record)) is not None and known.request_position > run.request_position:
            return  # it waited, and a later one is done
        async with self.changing:
            work = asyncio.ensure_future(self._run(lambda: self._measured(record.sae_id, run_id)))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])  # what it writes is there before anybody else may look
                raise
            except SAEError as error:
                logger.warning("what %s found is not in features.db, until the next start: %s", run_id, error.detail)
            finally:
                self._changed()

    async def start(self) -> None:
        """After the log was read: whatever is missing or of a killed process is put right. Labels stop no service."""
        try:
            await self._run(self._sweep)
        except SAEError as error:
            logger.error("uploads that had begun cannot be removed: %s", error.detail)
        await self.catch_up()

    async def catch_up(self) -> None:
        """`follow`, for what goes on without labels too."""
        async with self.changing:
            try:
                await self.follow()
            except SAEError as error:
                logger.error("features.db is behind the log: %s", error.detail)

    async def forget(self, sae_id: str) -> int:
        """Remove what is known of an SAE that is being deleted; the bytes freed."""
        async with self.changing:
            before = await asyncio.to_thread(self._bytes)
            try:
                await self.follow(without=sae_id)
            except SAEError as error:
                logger.error("what is known of %s could not be removed, until the next start: %s", sae_id, error.detail)
            return max(0, before - await asyncio.to_thread(self._bytes))

    def _changed(self) -> None:
        self._labels.clear()
        self._changes += 1

    def _follow(
        self,
        labels: Mapping[str, tuple[LabelFile, ...]],
        saes: Mapping[str, SaeRecord],
        runs: Mapping[str, RunState],
    ) -> None:
        self.directory.keep_only(saes)
        for sae_id, record in saes.items():
            missing, gone = outdated(labels.get(sae_id, ()), self.directory.sources(sae_id))
            for source in gone:
                self.directory.drop(sae_id, source)
            for each in missing:
                self._import(record, each)
            self._follow_profile(record, runs)
        if not self._read_only:
            wanted = {each.sha256 for files in labels.values() for each in files}
            for path in self._files.glob("?" * 64):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)

    def _follow_profile(self, record: SaeRecord, runs: Mapping[str, RunState]) -> None:
        there, _ = self.directory.sources(record.sae_id).get(PROFILE, (None, 0))
        held = None if there is None else runs.get(there)
        if held is not None and held.status == "open" and counts(held, record):
            return  # its end is about to go on record
        wanted = newest(runs.values(), record)
        if there is not None and (wanted is None or wanted.run_id != there):
            self.directory.drop(record.sae_id, PROFILE)
        if wanted is not None:
            self._measured(record.sae_id, wanted.run_id)

    def _measured(self, sae_id: str, run_id: str) -> None:
        if self.profile_rows is None or self.directory.sources(sae_id).get(PROFILE, ("", 0))[0] == run_id:
            return
        try:
            self.directory.put_statistics(sae_id, self.profile_rows(run_id), run_id)
        except SAEError as error:
            logger.warning("the rows of %s cannot be read: %s", run_id, error.detail)

    def _sweep(self) -> None:
        """Remove uploads that a killed process had begun."""
        if not self._read_only:
            for path in self._files.glob(f"*{BEGUN}"):
                path.unlink(missing_ok=True)

    def _import(self, record: SaeRecord, file: LabelFile) -> None:
        path = self.kept(file.sha256)
        if not path.is_file():
            logger.warning("the labels %s of %s are not in %s/", file.sha256, record.sae_id, FOLDER)
            return
        found = entries(path, Matching(record), file.default_source, self.upload_bytes)
        try:
            mine = (entry for source, entry in found if source == file.source)
            self.directory.replace(record.sae_id, file.source, file.sha256, file.position, mine)
        except SAEError as error:
            logger.warning("the labels %s of %s cannot be read: %s", file.sha256, record.sae_id, error.detail)

    async def _look(self, sae_id: str) -> None:
        """Read what lies next to the SAE's weights, unless this was done."""
        record = self._state().saes.get(sae_id)
        if record is None or record.sae is None or self._looked.get(sae_id) == record.weights_sha256:
            return
        try:
            folder = Path(await self._hub.locate(record.location))
            await self._run(lambda: self._own(record, folder))
        except SAEError as error:
            logger.warning("what lies next to the weights of %s cannot be read: %s", sae_id, error.detail)
        self._looked[sae_id] = record.weights_sha256

    def _own(self, record: SaeRecord, folder: Path) -> None:
        sha256 = digest(record, folder)
        if self.directory.sources(record.sae_id).get(OWN) != (sha256, 0):
            self.directory.replace(record.sae_id, OWN, sha256, 0, own_entries(record, folder))

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files.glob("?" * 64))

    @staticmethod
    async def _run(work: Callable[[], T]) -> T:
        """In a thread, with errors of the disk as the service's own."""
        try:
            return await asyncio.to_thread(work)
        except sqlite3.Error as error:
            if is_full(error):
                raise DiskFullError("The disk is full", reason="no_space") from None
            raise InternalError(f"features.db: {error}", reason="features") from None
        except OSError as error:
            raise disk_failure(error, UNKEPT) from None


def _counts(path: Path, record: SaeRecord, source: str | None, limit: int) -> LabelCounts:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    labels: dict[str, int] = {}
    features: dict[str, set[int]] = {}
    for name, entry in entries(path, Matching(record), source or sha256, limit):
        features.setdefault(name, set()).add(entry.feature)
        labels[name] = labels.get(name, 0) + isinstance(entry, Labelled)
    if not features:
        raise BadRequestError("there is no label and no statistic in the body", param="labels")
    return LabelCounts(
        source=source or sha256,
        sha256=sha256,
        labels=sum(labels.values()),
        features=len(set[int]().union(*features.values())),
        sources=tuple(LabelSource(name, labels[name], len(features[name])) for name in features),
    )
