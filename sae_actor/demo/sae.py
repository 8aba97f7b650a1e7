"""The bundled SAE in a place that outlives the checkout or environment it came with: the log keeps an import's path."""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from pathlib import Path

from . import SAE_FOLDER


def place_sae(folder: Path) -> Path:
    """The SAE's folder inside `folder`, copied there unless it is there already and the same, byte for byte.

    If `folder` is not writable, the one inside the package.
    """
    target = folder / SAE_FOLDER.name
    if not _same(target):
        try:
            with tempfile.TemporaryDirectory(prefix=".sae-", dir=folder) as working:
                made = Path(working) / "made"
                shutil.copytree(SAE_FOLDER, made, copy_function=shutil.copyfile)
                if target.exists():
                    target.rename(Path(working) / "replaced")
                made.rename(target)
        except OSError:
            # Read-only, full, or another process was faster: what counts is what lies there now.
            return target if _same(target) else SAE_FOLDER
    return target


def _same(target: Path) -> bool:
    names = sorted(path.name for path in SAE_FOLDER.iterdir())
    if not target.is_dir() or sorted(path.name for path in target.iterdir()) != names:
        return False
    return filecmp.cmpfiles(SAE_FOLDER, target, names, shallow=False)[0] == names
