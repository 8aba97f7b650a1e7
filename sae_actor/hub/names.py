"""Names that SAEs have elsewhere, as the place in a hub repository that they stand for.

`saelens:RELEASE/SAE_ID` is looked up in the registry file of the package sae-lens, which is never imported;
`neuronpedia:MODEL/SOURCE` in Neuronpedia's own export, `neuronpedia/**/source.jsonl` in the data folder, and in that
registry, which has some of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..errors import NotFoundError, SAEUnsupportedError
from ..ports import NamedSae

REGISTRY = "pretrained_saes.yaml"
INSTALL = "pip install 'sae-actor[names]'"
SHOWN = 3


class Names:
    """Reads its files at the first name, and again when one of them has changed. Blocks: for a worker thread."""

    def __init__(self, folder: Path) -> None:
        """folder: where exports of Neuronpedia lie."""
        self._folder = folder
        self._read: dict[Path, tuple[tuple[int, int], list[NamedSae]]] = {}

    def of(self, name: str) -> tuple[NamedSae, ...]:
        """The one SAE of that name, or all whose name begins with it and a slash.

        `SAEUnsupportedError` where nothing here knows such names, `NotFoundError` for a name that is not known.
        """
        known = self._known(name.partition(":")[0])
        found = [each for each in known if each.named_as == name]
        below = found or [each for each in known if each.named_as.startswith(f"{name}/")]
        if not below:
            raise NotFoundError(f"there is no {name}{_near(name, known)}", name=name)
        return tuple(below)

    def _known(self, prefix: str) -> list[NamedSae]:
        files = [] if prefix == "saelens" else sorted(self._folder.glob("**/source.jsonl"))
        registry = _registry()
        if registry is None and not files:
            more = "" if prefix == "saelens" else f", or put Neuronpedia's source.jsonl under {self._folder}"
            raise SAEUnsupportedError(f"no names of {prefix} are known here: {INSTALL}{more}", name=prefix)
        places = [*files, *([] if registry is None else [registry])]
        names = (each for file in places for each in self._content(file))
        return [each for each in names if each.named_as.startswith(f"{prefix}:")]

    def _content(self, file: Path) -> list[NamedSae]:
        about = file.stat()
        stamp = about.st_mtime_ns, about.st_size
        if file not in self._read or self._read[file][0] != stamp:
            read = _of_registry if file.name == REGISTRY else _of_export
            self._read[file] = stamp, list(read(file))
        return self._read[file][1]


def _registry() -> Path | None:
    """The registry file of the sae-lens that is installed."""
    spec = find_spec("sae_lens")
    folders = spec.submodule_search_locations if spec is not None else None
    files = (Path(folder) / REGISTRY for folder in folders or ())
    return next((file for file in files if file.is_file()), None)


def _of_registry(file: Path) -> Iterator[NamedSae]:
    # In C where yaml has it: the file has 14 000 SAEs.
    content = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for release, entry in content.items() if isinstance(content, Mapping) else ():
        for sae in entry.get("saes") or ():
            repository, path = entry.get("repo_id"), sae.get("path")
            yield from _named(f"saelens:{release}/{sae.get('id')}", repository, path)
            if sae.get("neuronpedia"):
                yield from _named(f"neuronpedia:{sae['neuronpedia']}", repository, path)


def _of_export(file: Path) -> Iterator[NamedSae]:
    for line in file.read_text("utf-8").splitlines():
        try:
            source: Any = json.loads(line)
        except ValueError:
            source = None
        if not isinstance(source, dict):
            raise SAEUnsupportedError(f"{file} is not an export of Neuronpedia: each line must be a JSON object")
        name = f"neuronpedia:{source.get('modelId')}/{source.get('id')}"
        yield from _named(name, source.get("hfRepoId"), source.get("hfFolderId"))


def _named(name: str, repository: object, path: object) -> Iterator[NamedSae]:
    """None without a repository: such a source is not on the hub."""
    if isinstance(repository, str) and repository:
        inside = str(path or "").strip("/")
        yield NamedSae(named_as=name, repository_id=repository, path=None if inside in ("", ".") else inside)


def _near(name: str, known: list[NamedSae]) -> str:
    """Some names of the same release or model, or the releases whose names begin alike."""
    parent = name.rpartition("/")[0] or name
    near = [each.named_as for each in known if each.named_as.startswith(parent)]
    return f"; there are {', '.join(near[:SHOWN])}" if near else ""
