"""Which files make one SAE, from their names: a repository of thousands is not fetched to find out.

The names are those that `formats` gives each family. `formats.describe` checks
whether the files hold what their names promise, once they are here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from posixpath import dirname, join, splitext
from typing import Any

from ..errors import RepositoryNotFoundError, SAEAmbiguousError, SAEUnsupportedError
from ..formats import FORMATS, Format
from ..formats.file_names import CONVERTIBLE, PICKLES
from ..formats.refused import refusal_of

WEIGHTS = (".safetensors", ".npz", *CONVERTIBLE)
SHOWN = 5
"""Matches that a refusal names."""


@dataclass(frozen=True)
class Found:
    """One SAE of a file list."""

    path: str
    """Folder, or file if several SAEs are in one folder; empty at the root."""
    formats: tuple[Format, ...]
    """Families whose names these are; none for a file that was named and could be of any."""
    weights: str
    configs: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.configs, self.weights)

    @property
    def format(self) -> str:
        return self.formats[0].name if self.formats else "file"

    @property
    def pickled(self) -> bool:
        return self.weights.endswith(PICKLES)

    def agreeing(self, settings: Mapping[str, Any]) -> tuple[Format, ...]:
        """Those of `formats` whose settings file could hold `settings`."""
        return tuple(each for each in self.formats if each.naming.agrees(settings))


def find(names: Collection[str]) -> list[Found]:
    """Every SAE among `names`, ordered by path."""
    known = names if isinstance(names, (set, frozenset, dict)) else set(names)
    weights = [name for name in known if name.endswith(WEIGHTS)]
    found: dict[str, Found] = {}
    for each in FORMATS:
        in_folder: dict[str, list[str]] = defaultdict(list)
        for name in weights:
            folder = each.naming.folder_of(name)
            if folder is not None and _configs(each, folder, name, known) is not None:
                in_folder[folder].append(name)
        for folder, all_here in in_folder.items():
            here = _without_twins(all_here)
            for name in here:
                path = name if each.naming.one_per_file or len(here) > 1 else folder
                others = found[path].formats if path in found else ()
                configs = _configs(each, folder, name, known) or ()
                found[path] = Found(path, (*others, each), name, configs)
    return [found[path] for path in sorted(found)]


def _configs(format: Format, folder: str, weights: str, known: Collection[str]) -> tuple[str, ...] | None:
    """Settings files that `format` reads with these weights; None if a required one is missing."""
    configs = format.naming.configs_of(weights, lambda name: join(folder, name) in known)
    if configs is None:
        return None
    above = [join(dirname(folder), name) for name in format.naming.above] if folder else []
    return (*(join(folder, name) for name in configs), *(path for path in above if path in known))


def _without_twins(weights: list[str]) -> list[str]:
    """Without pickles whose safetensors version is in the same folder."""
    stems = {splitext(name)[0] for name in weights if not name.endswith(PICKLES)}
    return [name for name in weights if not name.endswith(PICKLES) or splitext(name)[0] not in stems]


def choose(names: Collection[str], path: str | None) -> Found:
    """The one SAE at `path` (a folder, or a file) or, without a path, the only one there is.

    `SAEAmbiguousError` names the first of several; `SAEUnsupportedError` if there are only files that no reader opens;
    `RepositoryNotFoundError` if nothing is an SAE.
    """
    known = set(names)
    if path is not None and path in known:
        return _named_file(path, known)
    inside = known if path is None else {name for name in known if name.startswith(f"{path}/")}
    found = [sae for sae in find(known) if path is None or sae.path == path or sae.path.startswith(f"{path}/")]
    if (exact := next((sae for sae in found if sae.path == (path or "")), None)) is not None and path is not None:
        return exact
    if len(found) == 1:
        return found[0]
    where = "the repository" if path is None else path
    if found:
        first = [sae.path or "." for sae in found[:SHOWN]]
        shown = ", ".join(first) + (", …" if len(found) > SHOWN else "")
        raise SAEAmbiguousError(
            f"{len(found)} SAEs are in {where}; name one as path: {shown}",
            matches=first,
            count=len(found),
        )
    if (refusal := _refused(inside)) is not None:
        raise refusal
    if any(name.endswith(PICKLES) for name in inside):
        raise SAEUnsupportedError(f"{where} holds only pickles of unknown formats", check="pickle", path=path)
    if not inside:
        raise RepositoryNotFoundError(f"There is nothing at {where}", reason="not_found", kind="path", path=path)
    raise SAEUnsupportedError(f"No SAE of a known format is in {where}", check="format", path=path)


def target(names: Collection[str], path: str | None) -> str:
    """What to describe and load: the requested file, or the SAE's folder."""
    return path if path is not None and path in names else choose(names, path).path


def settings_names(weights: str) -> set[str]:
    """Names of the settings files next to or above this weight file (or in this folder) in any format."""
    stem = splitext(weights.rpartition("/")[2])[0]
    naming = [each.naming for each in FORMATS]
    names = {name for each in naming for group in each.configs for name in group} | {n for e in naming for n in e.above}
    return {name.replace("{stem}", stem) for name in names}


def _refused(names: Collection[str]) -> SAEUnsupportedError | None:
    """Why the SAEs of the first folder that has such are of a kind that is refused."""
    in_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        in_folder[dirname(name)].append(name.rpartition("/")[2])
    refusals = (refusal_of(in_folder[folder]) for folder in sorted(in_folder))
    return next((each for each in refusals if each is not None), None)


def _named_file(path: str, known: Collection[str]) -> Found:
    for sae in find(known):
        if path == sae.weights:
            return sae
    if path.endswith(PICKLES) and not path.endswith(CONVERTIBLE):
        raise SAEUnsupportedError(f"{path} is a pickle of a kind that is not read", check="pickle", path=path)
    if not path.endswith(WEIGHTS):
        raise SAEUnsupportedError(f"{path} is not a weights file", check="format", path=path)
    named = (join(dirname(path), name) for name in sorted(settings_names(path)))
    return Found(path, (), path, tuple(config for config in named if config in known))
