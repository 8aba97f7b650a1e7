"""How a family names its files: the names that show an SAE in a long file list before any download.

Names alone may leave two families for one folder; the settings file mostly says which (`Naming.agrees`), the
tensors always do, once they are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
"""Endings of files that only a pickle reader opens."""
CONVERTIBLE = (".pt", ".pth")
"""Those that hold state dicts, which a child process makes safetensors of."""


@dataclass(frozen=True)
class Naming:
    """Names relative to the SAE's folder. In a pattern `*` stands for anything, `#` for digits."""

    weights: tuple[str, ...]
    """Patterns of the weight file, the usual name first; none of them fits the weights of another SAE's folder."""
    configs: tuple[tuple[str, ...], ...] = ()
    """Settings files: of each group the first that is there. `{stem}` is the weight file's name without its ending."""
    needs_config: bool = False
    """Without one of the first group it is not this family's."""
    never_with: tuple[str, ...] = ()
    """A file next to the weights that makes them another family's."""
    above: tuple[str, ...] = ()
    """Files of the folder above that are read where they exist."""
    one_per_file: bool = False
    """Several SAEs lie in one folder, and each is named by its file."""
    agrees: Callable[[Mapping[str, Any]], bool] = field(default=lambda _: True)
    """Whether settings (the object in the first config) are those of this family."""

    @property
    def files(self) -> tuple[str, ...]:
        """Every name, for people."""
        names = (*self.weights, *(name for group in self.configs for name in group))
        return tuple(name.replace("#", "*").replace("{stem}", "*") for name in names)

    def folder_of(self, path: str) -> str | None:
        """The SAE's folder, "" for the root, if `path` could be its weight file; None if it could not."""
        found = self._pattern.fullmatch(path)
        return None if found is None else (found["folder"] or "").rstrip("/")

    def configs_of(self, weights: str, has: Callable[[str], bool]) -> list[str] | None:
        """The settings files that go with a weight file of this name; None where it cannot be this family's.

        `has` says whether the SAE's folder has a file of a name.
        """
        stem = weights.rpartition("/")[2].rpartition(".")[0]
        groups = [[name.replace("{stem}", stem) for name in group] for group in self.configs]
        found = [next((name for name in group if has(name)), None) for group in groups]
        if (self.needs_config and found[0] is None) or any(map(has, self.never_with)):
            return None
        return [name for name in found if name is not None]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        texts = (re.escape(each).replace(r"\*", "[^/]*").replace(r"\#", r"\d{1,9}") for each in self.weights)
        return re.compile(rf"(?P<folder>.*/)?(?:{'|'.join(texts)})", re.DOTALL)
