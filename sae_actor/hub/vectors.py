"""Vectors that the service keeps: `vectors/<sae_id>/vectors.safetensors` in the data folder, each written once."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from ..domain.weights import vectors_id_of
from ..errors import BadRequestError, SAEInUseError
from ..formats.vectors import tensors
from ..ports import NewVectors
from ..ports.durability import disk_failure, fsync_path
from .layout import remove_folder

BEGUN = ".tmp"
"""Ends the name of a folder that is being written."""
UNWRITTEN = "The vectors cannot be written"


def folder(hub: Path) -> Path:
    """Next to the folder of the hub."""
    return hub.parent / "vectors"


def keep(root: Path, vectors: NewVectors) -> str:
    """Write the vectors, unless they are there; their id. `BadRequestError` for a number beyond float32."""
    try:
        data = tensors.written(vectors.rows, vectors.hook_point, vectors.names, vectors.median_norm)
    except OverflowError:
        raise BadRequestError("rows: a number is beyond float32", param="rows") from None
    sae_id = vectors_id_of(vectors.name, hashlib.sha256(data).hexdigest())
    place = root / sae_id
    if _holds(place, data, sae_id):
        return sae_id
    try:
        root.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=f"{sae_id}.", suffix=BEGUN, dir=root))
    except OSError as error:
        raise disk_failure(error, UNWRITTEN) from None
    try:
        (begun / tensors.FILE).write_bytes(data)
        fsync_path(begun / tensors.FILE)
        fsync_path(begun)
        begun.rename(place)
        fsync_path(root)
        fsync_path(root.parent)
    except OSError as error:
        if not _holds(place, data, sae_id):  # another request was first
            raise disk_failure(error, UNWRITTEN) from None
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return sae_id


def _holds(place: Path, data: bytes, sae_id: str) -> bool:
    file = place / tensors.FILE
    if not file.is_file():
        return False
    if file.read_bytes() != data:
        raise SAEInUseError(f"{sae_id} is the id of other vectors: choose another name", sae_id=sae_id)
    return True


def remove(root: Path, sae_id: str) -> int:
    """Remove vectors; the bytes freed, 0 if there are none."""
    return remove_folder(root / sae_id)


def sweep(root: Path) -> int:
    """Remove what a killed process had begun; the bytes freed. Whole ones stay, as a log from before may name them."""
    return sum(remove(root, place.name) for place in root.glob(f"*{BEGUN}"))
