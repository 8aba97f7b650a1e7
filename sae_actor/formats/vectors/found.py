"""Rows that a file of other tools holds, one at a hook point each, and the choice among its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...domain.placement import HOOKS_READ
from ...domain.refs import BYTES_PER_PARAMETER, HookPoint, SaeDescription
from ...errors import SAEAmbiguousError, SAEInvalidError, SAEUnsupportedError
from ..headers import bad
from ..layout import Layout, Recipe, Stored, Weight

ARCHITECTURE = "vectors"
NO_ENCODER = Recipe(activation="none")


class FoundRow(NamedTuple):
    """One vector of a file."""

    hook_name: str
    """As the file names it."""
    hook_point: HookPoint | None
    """None: its name is unknown, or could be two places."""
    layer: int | None
    stored: Stored
    ignored: Mapping[str, str] = {}
    refused: str | None = None
    """Why this row cannot be used; the others can."""


def chosen(file: str, rows: Sequence[FoundRow], layer: int | None) -> FoundRow:
    """The row at `layer`, or the only one. `SAEAmbiguousError`, which names the layers, where it takes a layer and
    none was given; `SAEInvalidError` (check `layer`) where the file has nothing there."""
    layers = sorted({row.layer for row in rows if row.layer is not None})
    there = [row for row in rows if layer is None or row.layer == layer]
    shown = ", ".join(map(str, layers))
    if not there:
        raise SAEInvalidError(f"{file} has vectors of layers {shown}, not {layer}", check="layer", layers=layers)
    if len(there) > 1 and len({row.layer for row in there}) > 1:
        raise SAEAmbiguousError(
            f"{file} has vectors of layers {shown}: import one at a time, with layer", param="layer", layers=layers
        )
    if len(there) > 1:
        names = ", ".join(row.hook_name[:60] for row in there)
        raise SAEUnsupportedError(f"{file} has several vectors at one layer: {names}", file=file)
    if there[0].refused is not None:
        raise SAEUnsupportedError(f"{file}: {there[0].refused}", file=file)
    return there[0]


def layout_of(file: str, row: FoundRow) -> Layout:
    """One vector as W_dec [1, d]."""
    stored = row.stored
    if stored.dtype not in BYTES_PER_PARAMETER:
        raise bad(file, "dtype", f"{stored.name} has the type {stored.dtype}, which cannot hold a vector")
    if stored.count == 0 or stored.shape not in ((stored.count,), (1, stored.count)):
        raise bad(file, "shape", f"{stored.name} is {list(stored.shape)}, not one vector")
    return vectors_layout(
        file,
        dataclasses.replace(stored, shape=(1, stored.count)),
        hook_name=row.hook_name,
        hook_point=row.hook_point,
        layer=row.layer,
        ignored=dict(row.ignored),
    )


def vectors_layout(
    file: str,
    rows: Stored,
    *,
    hook_name: str | None,
    hook_point: HookPoint | None,
    layer: int | None,
    names: tuple[str, ...] = (),
    median_norm: float | None = None,
    ignored: dict[str, str] | None = None,
) -> Layout:
    """The layout of `rows`, W_dec [n, d]."""
    n, d = rows.shape
    description = SaeDescription(
        format="",
        architecture=ARCHITECTURE,
        d_in=d,
        d_sae=n,
        d_out=d,
        dtype=rows.dtype,
        trained_layer=layer,
        hook_name=hook_name,
        hook_point=hook_point,
        hooks_read=HOOKS_READ,
        names=names,
        median_norm=median_norm,
        ignored=ignored or {},
    )
    return Layout(description, NO_ENCODER, {"W_dec": Weight(rows)}, (file,))
