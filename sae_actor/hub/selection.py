"""Which files make one SAE, by their names alone: a repository of thousands is not fetched to find out.

Whether the files hold what their names promise is said by `formats.describe`, once they are here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from posixpath import basename, dirname, join

from ..errors import RepositoryNotFoundError, SAEAmbiguousError, SAEUnsupportedError

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
CONFIGS = ("cfg.json", "config.json", "hyperparams.json", "config.yaml", "wandb-config.yaml", "wanb-config.yaml")
"""Every name that a family keeps its settings under; one spelling is that of real repositories."""
SHOWN = 5
"""Matches that a refusal names."""


@dataclass(frozen=True)
class Family:
    """One on-disk family: the file with the weights, and where its settings are, relative to the SAE's folder."""

    format: str
    weights: str
    configs: tuple[str, ...]
    """The first of these that is there is taken."""
    needs_config: bool = True
    above: tuple[str, ...] = ()
    """Files of the folder above that are taken where they exist."""


FAMILIES = (
    # With config.json it may be of Llama Scope's R1 set, too: what is in the file tells them apart.
    Family("sae_lens", "sae_weights.safetensors", ("cfg.json", "config.json")),
    Family("sparsify", "sae.safetensors", ("cfg.json",), above=("config.json",)),
    Family("llama_scope", "checkpoints/final.safetensors", ("hyperparams.json",)),
    Family("gemma_scope", "params.npz", (), needs_config=False),
    Family("gemma_scope_2", "params.safetensors", ("config.json",), needs_config=False),
    Family("dictionary_learning", "ae.safetensors", ("config.json",)),
)
LAYER_FILES = {
    "layer_file": re.compile(r"layer_\d{1,3}\.safetensors"),
    "qwen_scope": re.compile(r"layer\d{1,3}\.sae\.safetensors"),
}
"""Sets that keep one SAE per file, side by side, with one config for all or none."""


@dataclass(frozen=True)
class Found:
    """One SAE of a file list."""

    path: str
    """Folder, or file of a set of files; empty at the root."""
    format: str
    weights: tuple[str, ...]
    configs: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.configs, *self.weights)


def find(names: Collection[str]) -> list[Found]:
    """Every SAE among `names`, ordered by path."""
    known = names if isinstance(names, (set, frozenset, dict)) else set(names)
    found: dict[str, Found] = {}
    for family in FAMILIES:
        for name in known:
            if name != family.weights and not name.endswith(f"/{family.weights}"):
                continue
            folder = name[: -len(family.weights)].rstrip("/")
            configs = [join(folder, config) for config in family.configs if join(folder, config) in known][:1]
            if folder in found or (family.needs_config and not configs):
                continue
            above = [join(dirname(folder), config) for config in family.above] if folder else []
            configs += [config for config in above if config in known]
            found[folder] = Found(folder, family.format, (name,), tuple(configs))
    for name in known:
        for format, pattern in LAYER_FILES.items():
            if pattern.fullmatch(basename(name)):
                found[name] = Found(name, format, (name,), _beside(name, known))
    return [found[path] for path in sorted(found)]


def choose(names: Collection[str], path: str | None) -> Found:
    """The one SAE at `path` (a folder, or a file) or, without a path, the only one there is.

    `SAEAmbiguousError` names the first of several; `SAEUnsupportedError` where there are only files that no
    reader opens; `RepositoryNotFoundError` where nothing is an SAE.
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
    if any(name.endswith(PICKLES) for name in inside):
        raise SAEUnsupportedError(f"{where} holds only pickles, which are not opened", check="pickle", path=path)
    if not inside:
        raise RepositoryNotFoundError(f"There is nothing at {where}", reason="not_found", kind="path", path=path)
    raise SAEUnsupportedError(f"No SAE of a known format is in {where}", check="format", path=path)


def target(names: Collection[str], path: str | None) -> str:
    """What to describe and load: the file that was asked for, or the SAE's folder."""
    return path if path is not None and path in names else choose(names, path).path


def _named_file(path: str, known: Collection[str]) -> Found:
    if path.endswith(PICKLES):
        raise SAEUnsupportedError(f"{path} is a pickle, which is not opened", check="pickle", path=path)
    for sae in find(known):
        if path in sae.weights:
            return sae
    if not path.endswith((".safetensors", ".npz")):
        raise SAEUnsupportedError(f"{path} is not a file of weights", check="format", path=path)
    return Found(path, "file", (path,), _beside(path, known))


def _beside(name: str, known: Iterable[str]) -> tuple[str, ...]:
    folder = dirname(name)
    return tuple(config for config in (join(folder, config) for config in CONFIGS) if config in known)
