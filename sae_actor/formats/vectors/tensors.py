"""`vectors.safetensors`: W_dec [n, d], where it is read and written in the metadata.

hook_point    resid_post.12
names         a JSON list of n strings; may be missing
median_norm   the median |x| at the hook point, for strengths of unit norm; may be missing
"""

from __future__ import annotations

import json
import math
import re
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from ...domain.refs import BYTES_PER_PARAMETER, HookKind, HookPoint
from ...errors import SAEInvalidError
from ..config import strict_json
from ..files import SaeFiles
from ..headers import TensorFile, bad
from ..layout import Layout
from .found import vectors_layout

FILE = "vectors.safetensors"
MAX_NAME = 200
MAX_NAMES_BYTES = 128 << 10
"""Of all names together: they go on record."""

_NAME = re.compile(re.escape(FILE))
_POINT = re.compile(rf"({'|'.join(get_args(HookKind))})\.(0|[1-9]\d{{0,3}})(.*)", re.DOTALL)


def recognise(files: SaeFiles) -> bool:
    return files.holds(_NAME, "W_dec") and "W_enc" not in files.tensors(FILE)


def read(files: SaeFiles) -> Layout:
    file = files.tensors(files.one(_NAME))
    if set(file.tensors) != {"W_dec"}:
        raise bad(file.name, "foreign_tensor", "vectors have the one tensor W_dec")
    rows = file.tensors["W_dec"]
    if rows.dtype not in BYTES_PER_PARAMETER:
        raise bad(file.name, "dtype", f"W_dec has the type {rows.dtype}, which cannot hold vectors")
    if len(rows.shape) != 2 or not rows.count:
        raise bad(file.name, "shape", f"W_dec is {list(rows.shape)}, not [n, d]")
    named = file.extras.get("hook_point")
    point = None if named is None else _point(file, named)
    _at_layer(file, point, files.layer)
    return vectors_layout(
        file.name,
        rows,
        hook_name=named,
        hook_point=point,
        layer=None if point is None else point.layer,
        names=_names(file, rows.shape[0]),
        median_norm=_median_norm(file),
    )


def _point(file: TensorFile, text: str) -> HookPoint:
    match = _POINT.fullmatch(text)
    if match is not None and int(match[2]) <= 4095:
        kind: Any = match[1]
        for before in (None, "norm", "gain"):
            try:
                point = HookPoint(kind, int(match[2]), before)
            except ValueError:
                continue
            if str(point) == text:
                return point
    raise bad(file.name, "hook_point", f"hook_point {text[:60]!r} is not a hook point such as resid_post.12")


def _at_layer(file: TensorFile, point: HookPoint | None, layer: int | None) -> None:
    if layer is not None and (point is None or point.layer != layer):
        has = "do not say their layer" if point is None else f"are of layer {point.layer}, not {layer}"
        layers = [] if point is None else [point.layer]
        raise SAEInvalidError(f"{file.name}: the vectors {has}", check="layer", layers=layers)


def _names(file: TensorFile, count: int) -> tuple[str, ...]:
    text = file.extras.get("names")
    if text is None:
        return ()
    names = strict_json(text.encode(), f"{file.name} (names)", "names")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names) or len(names) != count:
        raise bad(file.name, "names", f"names is not a JSON list of {count} strings")
    if any(len(each) > MAX_NAME for each in names) or len(text) > MAX_NAMES_BYTES:
        raise bad(file.name, "names", f"a name has at most {MAX_NAME} characters, all together {MAX_NAMES_BYTES}")
    return tuple(names)


def _median_norm(file: TensorFile) -> float | None:
    text = file.extras.get("median_norm")
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise bad(file.name, "median_norm", "median_norm is not a number above 0")
    return value


def written(
    rows: Sequence[Iterable[float]], hook_point: HookPoint, names: Sequence[str] = (), median_norm: float | None = None
) -> bytes:
    """The file of these rows, in float32; equal vectors have equal bytes. `OverflowError` for a number beyond it."""
    data = array("f")
    for row in rows:
        data.extend(row)
    if not all(map(math.isfinite, data)):
        raise OverflowError("a number is beyond float32")
    metadata = {"hook_point": str(hook_point)}
    if names:
        metadata["names"] = json.dumps(list(names))
    if median_norm is not None:
        metadata["median_norm"] = repr(median_norm)
    n = len(rows)
    entry = {"dtype": "F32", "shape": [n, len(data) // n], "data_offsets": [0, 4 * len(data)]}
    text = json.dumps({"__metadata__": metadata, "W_dec": entry}, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data.tobytes()
