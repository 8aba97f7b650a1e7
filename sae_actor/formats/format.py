"""What a format is: a family of files on disk, with its reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from .file_names import Naming
from .files import SaeFiles
from .layout import Layout


@dataclass(frozen=True)
class Format:
    """One on-disk family."""

    name: str
    naming: Naming
    """By which names it is found in a list of files."""
    architectures: tuple[str, ...]
    recognise: Callable[[SaeFiles], bool]
    reader: Callable[[SaeFiles], Layout]
    """Its description does not name the format: `read` does."""
    patterns: tuple[str, ...] = ()
    """Names in the SAE's folder that it reads, where they are others than those of `naming`."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names or patterns in the SAE's folder that it reads, the weights' first."""
        return self.patterns or self.naming.files

    def read(self, files: SaeFiles) -> Layout:
        found = self.reader(files)
        return dataclasses.replace(found, description=replace(found.description, format=self.name))
