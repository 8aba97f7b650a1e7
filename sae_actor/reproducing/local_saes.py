"""SAEs of a log in other places than the log names: on another machine, told by path and found by their digests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from ..domain.refs import SaeFile
from ..domain.state import SaeLocation
from ..errors import SAEError, SAEInvalidError
from ..hub import HuggingFaceHub
from ..hub.selection import target


class LocalSaes:
    """Paths of SAEs: their own folders, folders like the repository that they came from, or files of weights."""

    def __init__(self, paths: Sequence[Path], hub: HuggingFaceHub) -> None:
        self._paths = paths
        self._hub = hub

    async def locate(self, location: SaeLocation) -> tuple[SaeLocation, str]:
        """Where the files of an SAE are, each with the recorded digest; and what to load.

        Raises `SAEInvalidError` with what is wrong at the last path, if none holds them.
        """
        why = "no path was given"
        for path in self._paths:
            for here in _readings(location, path.expanduser().absolute()):
                try:
                    folder = await self._hub.locate(here)
                except SAEError as error:
                    why = f"{path}: {error.detail.partition(':')[0]}"
                    continue
                inner = target([file.path for file in here.files], None) if location.source == "hub" else ""
                return here, str(Path(folder) / inner)
        raise SAEInvalidError(f"its files, as recorded, are at none of the paths given ({why})", check="sha256")


def _readings(location: SaeLocation, path: Path) -> Iterator[SaeLocation]:
    """The location as one on this disk: with the whole paths of its files first, then with ever shorter ones."""
    base = path.parent if path.is_file() else path
    if location.converted:
        own = [file.converted_from for file in location.converted]
        settings = [file for file in location.files if file.converted_from is None and file.path not in own]
        beside = [file for file in map(_alone, settings) if (base / file.path).is_file()]
        yield _at(location, base, [*map(_alone, location.converted), *beside])
        return
    depth = min((file.path.count("/") for file in location.files), default=0)
    for above in range(depth + 1):
        if len({tuple(file.path.split("/")[:above]) for file in location.files}) == 1:
            files = [replace(file, path="/".join(file.path.split("/")[above:])) for file in location.files]
            yield _at(location, base, files)


def _at(location: SaeLocation, base: Path, files: Sequence[SaeFile]) -> SaeLocation:
    return replace(location, source="import", path=str(base), files=tuple(files))


def _alone(file: SaeFile) -> SaeFile:
    """A file that lies in the folder itself."""
    return replace(file, path=file.path.rpartition("/")[2], converted_from=None)
