"""From a layout to tensors: read in pieces, converted and checked on the way, never held twice."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..domain.structs import filled
from ..errors import BadRequestError, SAEInvalidError, SAEUnsupportedError
from ..formats.files import SaeFiles
from ..formats.headers import fill, open_stored
from ..formats.layout import Layout, Stored, Weight, shapes
from ..formats.pickles import read_pickle
from ..formats.registry import read_layout
from .autoencoder import SAE, SaeSpec, row_norms

PIECE_VALUES = 24_576
"""What is read, converted and checked at a time: it stays in the cache, and below what torch divides among threads,
which on a busy machine wait for each other longer than the work takes."""
UNIT_NORM_TOLERANCE = 0.02
"""bfloat16 rounds a norm of 1 by some thousandths."""

_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}


def load_sae(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    allow_pickle: bool = False,
    mapped: bool = False,
    repository_id: str | None = None,
    layer: int | None = None,
) -> SAE:
    """The SAE in the folder (or weight file) `path`.

    dtype: type of the weights in memory and of the arithmetic; None keeps the stored one (the widest, where the
    tensors differ). Memory: the SAE's own bytes plus some MiB. allow_pickle: also read .pt and .pth, with
    `weights_only=True`. repository_id, layer: see `formats.describe`.

    mapped: matrices that need no conversion stay in the file and are read where they are touched, on the CPU.
    Their values are not checked here (`formats.check_values` does), and a file truncated later ends the process: only
    for files with no other writer.

    Raises `SAENotFoundError`, `SAEInvalidError` (keyword `check` names the test), `SAEUnsupportedError`;
    `BadRequestError` for a device that this machine does not have, `ValueError` for an unknown dtype.
    """
    wanted = None if dtype is None else _dtype(dtype)
    _check_device(device)
    files = SaeFiles(path, repository_id=repository_id, pickles=read_pickle if allow_pickle else None, layer=layer)
    return load_layout(read_layout(files), device=device, dtype=wanted, mapped=mapped)


def load_layout(
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    mapped: bool = False,
) -> SAE:
    """The SAE that `layout` describes; raises as `load_sae`."""
    description, recipe = layout.description, layout.recipe
    held = dtype or _DTYPES[description.dtype]
    wanted = shapes(description.d_in, description.d_sae, description.d_out)
    weights: dict[str, Tensor] = {}
    for name, weight in layout.weights.items():
        tensor = _map(weight, wanted[name], held, for_rows=name == "W_dec") if mapped else None
        if tensor is None:
            tensor = _canonical(name, weight, wanted[name], held)
        if name == "scaling_factor" and bool((tensor == 1).all()):
            continue
        if name in layout.ones_only:
            raise SAEInvalidError(f"{name} is not 1, and the config does not say that it counts", check=name)
        if name in layout.never_negative and bool((tensor < 0).any()):
            why = "a value below 0 lets negative activations through, which is not computed here"
            raise SAEUnsupportedError(f"{weight.stored.name}: {why}", check=name)
        weights[name] = tensor.to(device)
    if recipe.threshold is not None:
        weights["threshold"] = torch.full(wanted["threshold"], recipe.threshold, dtype=held, device=device)
    if recipe.threshold_of_norm:
        weights["threshold"] = weights["threshold"] / _norms_that_count(weights["W_dec"])
    if recipe.decoder_norm and recipe.activation == "jumprelu":
        recipe = replace(recipe, decoder_norm=False)
        _fold_decoder_norms(weights)
    for bias in ("b_dec",) if recipe.activation in ("gated", "none") else ("b_dec", "b_enc"):
        if bias not in weights:
            weights[bias] = torch.zeros(wanted[bias], dtype=held, device=device)
    warnings = _decoder_warnings(weights["W_dec"]) if layout.unit_decoder and not mapped else ()
    spec = filled(
        SaeSpec,
        description,
        dtype=str(held).removeprefix("torch."),
        stored_dtype=description.dtype,
        warnings=description.warnings + warnings,
    )
    return SAE(spec, recipe, weights)


def _check_device(device: torch.device | str) -> None:
    """Before anything is read. Torch raises one kind or another, by how it was built and what is missing."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadRequestError(f"this machine has no device {device} that torch can use: {why}") from None


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {name[:40]}")
    found: torch.dtype = _DTYPES[name]
    return found


def _canonical(name: str, weight: Weight, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One canonical tensor in `dtype`, contiguous by features if rows of W_dec are gathered."""
    stored = weight.stored
    if weight.transposed and name != "W_dec":
        tensor = _read(stored, stored.shape, dtype, transposed=False).T  # the product is as fast from either side
    else:
        tensor = _read(stored, (1,) if weight.broadcast else shape, dtype, transposed=weight.transposed)
    if weight.exponential:
        tensor = tensor.exp_()
        if not bool(torch.isfinite(tensor).all()):
            raise SAEInvalidError(f"{stored.name} is not finite as an exponent", check="finite")
    return tensor.expand(shape).contiguous() if weight.broadcast else tensor


def _map(weight: Weight, shape: tuple[int, ...], dtype: torch.dtype, *, for_rows: bool) -> Tensor | None:
    """A matrix as a private mapping of its file; None if it has to be read: converted, small, turned or zipped."""
    stored = weight.stored
    source = _DTYPES[stored.dtype]
    turned = weight.transposed and for_rows  # rows that are gathered must lie together
    if len(shape) != 2 or source != dtype or turned or stored.member or stored.value is not None or weight.exponential:
        return None
    if stored.offset % source.itemsize or not stored.count:
        return None
    with open_stored(stored) as file:
        pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    tensor = torch.frombuffer(pages, dtype=source, count=stored.count, offset=stored.offset).view(stored.shape)
    return tensor.T if weight.transposed else tensor


def _read(stored: Stored, shape: tuple[int, ...], dtype: torch.dtype, *, transposed: bool) -> Tensor:
    """The stored values as a contiguous tensor of `shape`, the sides on disk swapped if `transposed`."""
    target = torch.empty(shape, dtype=dtype)
    flipped = len(shape) == 2 and transposed != stored.fortran
    # [rows, width], as on disk; without a transpose, one long column is enough
    view = target.T if flipped else target.view(-1, 1)
    if stored.value is not None:
        for rows, columns in _pieces(*view.shape):
            _place(view[rows, columns], stored.value.reshape(view.shape)[rows, columns], stored)
        return target
    source: torch.dtype = _DTYPES[stored.dtype]
    straight = source == dtype and not flipped
    buffer = bytearray(0 if straight else PIECE_VALUES * source.itemsize)
    with open_stored(stored) as file:
        for rows, columns in _pieces(*view.shape):
            part = view[rows, columns]
            if straight:
                fill(file, part.view(-1).view(torch.uint8).numpy().data, stored)
                _check(part, part, stored)
            else:
                fill(file, memoryview(buffer)[: part.numel() * source.itemsize], stored)
                _place(part, torch.frombuffer(buffer, dtype=source, count=part.numel()).view(part.shape), stored)
    return target


def _pieces(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """[rows, width] in the order of the file, at most `PIECE_VALUES` at a time: whole rows, or parts of one."""
    step = max(1, PIECE_VALUES // max(1, width))
    for first in range(0, rows, step):
        for column in range(0, width, PIECE_VALUES):
            yield slice(first, min(first + step, rows)), slice(column, min(column + PIECE_VALUES, width))


def _place(target: Tensor, piece: Tensor, stored: Stored) -> None:
    target.copy_(piece)
    _check(target, piece, stored)


def _check(target: Tensor, piece: Tensor, stored: Stored) -> None:
    """`SAEInvalidError` unless all of `target`, made of `piece`, is finite."""
    if not target.numel() or bool(torch.stack(torch.aminmax(target)).isfinite().all()):  # NaN is both
        return
    why = "has values that are not finite" if not bool(torch.isfinite(piece).all()) else f"overflows {target.dtype}"
    raise SAEInvalidError(f"{stored.path.name}: {stored.name} {why}", check="finite", file=stored.path.name)


def _fold_decoder_norms(weights: dict[str, Tensor]) -> None:
    """What is read times ‖W_dec[i]‖, what is written over it: the same output, by activations of rows of norm 1."""
    norms = row_norms(weights["W_dec"]).to(weights["W_dec"].dtype)  # [d_sae]
    weights["W_enc"] = weights["W_enc"] * norms
    if "b_enc" in weights:
        weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms.masked_fill(norms == 0, 1)[:, None]


def _norms_that_count(W_dec: Tensor) -> Tensor:
    """‖W_dec[i]‖, where it is 1 but for rounding and where it is 0: 1."""
    norms = row_norms(W_dec)
    ones = ((norms - 1).abs() <= UNIT_NORM_TOLERANCE) | (norms == 0)
    return norms.masked_fill_(ones, 1).to(W_dec.dtype)


def _decoder_warnings(W_dec: Tensor) -> tuple[str, ...]:
    off = float((row_norms(W_dec) - 1).abs().max())
    if off <= UNIT_NORM_TOLERANCE:
        return ()
    return (f"decoder rows should have norm 1, one is off by {off:.3f}: which features fire may differ from training",)
