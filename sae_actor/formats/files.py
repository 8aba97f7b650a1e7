"""The files of one SAE, as a path names them: nothing outside its folder, or its repository's cache, is opened."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import SAEInvalidError, SAENotFoundError, SAEUnsupportedError
from .config import MAX_CONFIG_BYTES, Config, strict_json
from .file_names import PICKLES
from .headers import TensorFile, read_npz, read_safetensors
from .lfs import REMEDY, pointer_at

PickleReader = Callable[[Path, str], TensorFile]


@dataclass(frozen=True)
class Origin:
    """Names that some releases put into paths and nowhere else."""

    repository_id: str | None
    """Hub repository, where the path lies in a hub cache or the caller knows it."""
    parts: tuple[str, ...]
    """Parts of the path inside the repository, or of the whole path where there is no repository."""

    def named(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """By the name of the repository, or else of the innermost folder, that `pattern` matches as a whole."""
        names = (*(self.repository_id or "").split("/"), *reversed(self.parts))
        return next((match for name in names if (match := pattern.fullmatch(name))), None)


class SaeFiles:
    """A folder, or one file in it, seen as an SAE.

    Links are followed as far as the folder; in the hub's cache (`models--o--n/snapshots/<commit>/…`) as far as
    the repository's own cache folder, where the blobs are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        repository_id: str | None = None,
        pickles: PickleReader | None = None,
        layer: int | None = None,
    ) -> None:
        """`layer`: which of the layers in a file of vectors is meant."""
        named = Path(os.path.abspath(os.fspath(path)))  # not resolved: snapshots/<commit> must stay visible
        if not named.exists():
            raise SAENotFoundError(f"there is no SAE at {os.fspath(path)}")
        self.folder = named if named.is_dir() else named.parent
        self.file = None if named.is_dir() else named.name
        self.layer = layer
        self._pickles = pickles
        self._read: dict[str, TensorFile] = {}
        cache = _cache_folder(self.folder)
        self._container = (cache or self.folder).resolve()
        if cache is not None:
            inside = self.folder.relative_to(cache).parts[2:]
            repository_id = repository_id or cache.name.removeprefix("models--").replace("--", "/")
        else:
            inside = self.folder.parts
        self.origin = Origin(repository_id, inside)

    @property
    def reads_pickles(self) -> bool:
        return self._pickles is not None

    def names(self) -> list[str]:
        """Names of the files directly in the folder, sorted."""
        return sorted(entry.name for entry in os.scandir(self.folder) if not entry.is_dir())

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def first(self, *names: str) -> str | None:
        """The first of `names` that is there."""
        return next((name for name in names if self.has(name)), None)

    def resolve(self, name: str) -> Path:
        """The real file of `name`; `SAEInvalidError` (check `link`) where it is outside, (check `lfs_pointer`)
        where git-lfs has not brought it yet."""
        real = (self.folder / name).resolve()
        if not real.is_relative_to(self._container):
            raise SAEInvalidError(f"{name} is a link that leaves the folder", check="link", file=name)
        try:
            status = real.stat()
        except OSError:
            raise SAEInvalidError(f"{name} is missing", check="files", file=name) from None
        if not stat.S_ISREG(status.st_mode):
            raise SAEInvalidError(f"{name} is not a regular file", check="files", file=name)
        if pointer_at(real):
            raise SAEInvalidError(f"{name} {REMEDY}", check="lfs_pointer", file=name)
        return real

    def config(self, name: str) -> Config:
        """The JSON object in `name`."""
        return Config(strict_json(self.text(name), name), name)

    def text(self, name: str) -> bytes:
        """The bytes of a small file."""
        with self.resolve(name).open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise SAEInvalidError(f"{name} is larger than a config is", check="config", file=name)
        return text

    def above(self, name: str) -> Config | None:
        """The object in a file of the folder above, shared by several SAEs; None where there is none that is sound."""
        path = self.folder.parent / name
        inside = path.resolve().is_relative_to(self._container) or not path.is_symlink()
        if not inside or not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        try:
            return Config(strict_json(path.read_bytes(), f"../{name}"), f"../{name}")
        except SAEInvalidError:
            return None

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """Names in the folder that `pattern` matches as a whole; only the named file's, where a file was named."""
        names = self.names() if self.file is None else [self.file]
        return [name for name in names if pattern.fullmatch(name)]

    def one(self, pattern: re.Pattern[str]) -> str:
        """The only name that `pattern` matches; `SAEInvalidError` (check `ambiguous`) for several."""
        names = self.matching(pattern)
        if len(names) != 1:
            shown = ", ".join(names[:5])
            raise SAEInvalidError(f"{len(names)} SAEs are in this folder, name one file: {shown}", check="ambiguous")
        return names[0]

    def holds(self, pattern: re.Pattern[str], *tensors: str) -> bool:
        """The one file that `pattern` matches has all of `tensors`."""
        names = self.matching(pattern)
        if len(names) != 1 or (names[0].endswith(PICKLES) and self._pickles is None):
            return False
        return all(tensor in self.tensors(names[0]) for tensor in tensors)

    def tensors(self, name: str) -> TensorFile:
        """The tensors of a weight file, by its header; a pickle only with a reader for it."""
        if name not in self._read:
            if name.endswith(PICKLES):
                if self._pickles is None:
                    self.resolve(name)
                    why = f"{name} is a pickle, which is not opened here"
                    raise SAEUnsupportedError(why, check="pickle", file=name)
                self._read[name] = self._pickles(self.resolve(name), name)
            elif name.endswith(".npz"):
                self._read[name] = read_npz(self.resolve(name), name)
            else:
                self._read[name] = read_safetensors(self.resolve(name), name)
        return self._read[name]

    def origin_of(self, file: TensorFile) -> Origin:
        """Where `file` came from: of a converted file, where the pickle was."""
        return self.origin if file.origin is None else Origin(*file.origin)


def _cache_folder(folder: Path) -> Path | None:
    """The repository's folder of the hub's cache that `folder` lies in, by the names of the layout."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            return parent.parent.parent
    return None
