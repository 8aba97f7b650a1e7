"""From stored tensors to canonical ones: every name accounted for, every shape compared with the config."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ..domain.placement import HOOKS_READ
from ..domain.refs import BYTES_PER_PARAMETER, HookPoint, SaeDescription
from ..errors import SAEInvalidError
from .config import Config
from .headers import TensorFile, bad
from .hook_names import parse_layer
from .layout import Layout, Recipe, Weight, shapes
from .settings.keys import Account, Keys


class Alias(NamedTuple):
    """A name under which a canonical tensor may be stored, and how."""

    name: str
    transposed: bool = False
    exponential: bool = False


Names = Mapping[str, tuple[Alias, ...]]
"""Canonical tensor → the names it may have."""

MATH: Names = {
    "W_enc": (Alias("W_enc"), Alias("encoder.weight", transposed=True)),
    "b_enc": (Alias("b_enc"), Alias("encoder.bias")),
    "W_dec": (Alias("W_dec"), Alias("decoder.weight", transposed=True)),
    "b_dec": (Alias("b_dec"), Alias("decoder.bias")),
}
"""Names that say their orientation: `W_enc` is [d_in, d_sae], `encoder.weight` that of torch.nn.Linear."""


class Sizes(NamedTuple):
    d_in: int
    d_sae: int
    d_out: int


def assemble(
    file: TensorFile,
    names: Names,
    sizes: Sizes,
    *,
    optional: Collection[str] = (),
    ignored: Collection[str] = (),
    broadcast: Collection[str] = (),
) -> dict[str, Weight]:
    """Canonical weights out of one file.

    `optional` canonical tensors may be absent; stored tensors in `ignored` play no part; canonical tensors in
    `broadcast` may be one number for all features. `SAEInvalidError` with check `missing_tensor`,
    `foreign_tensor`, `duplicate_tensor`, `dtype` or `shape`.
    """
    wanted = shapes(*sizes)
    found: dict[str, Weight] = {}
    used: set[str] = set()
    for canonical, aliases in names.items():
        present = [alias for alias in aliases if alias.name in file]
        if not present:
            if canonical not in optional:
                raise bad(file.name, "missing_tensor", f"{aliases[0].name} is not in the file")
            continue
        if len(present) > 1:
            both = " and ".join(alias.name for alias in present)
            raise bad(file.name, "duplicate_tensor", f"{both} are the same tensor twice")
        found[canonical] = _weight(file, present[0], wanted[canonical], canonical in broadcast)
        used.add(present[0].name)
    foreign = sorted(set(file.tensors) - used - set(ignored))
    if foreign:
        shown = ", ".join(name[:60] for name in foreign[:5])
        raise bad(file.name, "foreign_tensor", f"tensors that this kind of SAE does not have: {shown}")
    return found


def _weight(file: TensorFile, alias: Alias, wanted: tuple[int, ...], broadcast: bool) -> Weight:
    stored = file.tensors[alias.name]
    if stored.dtype not in BYTES_PER_PARAMETER:
        raise bad(file.name, "dtype", f"{alias.name} has the type {stored.dtype}, which cannot hold weights")
    if broadcast and stored.count == 1 and wanted != (1,):
        return Weight(stored, exponential=alias.exponential, broadcast=True)
    on_disk = wanted[::-1] if alias.transposed else wanted
    if stored.shape != on_disk:
        raise bad(file.name, "shape", f"{alias.name} is {list(stored.shape)}, the sizes require {list(on_disk)}")
    return Weight(stored, alias.transposed, alias.exponential)


def side(file: TensorFile, names: Names, canonical: str, axis: int) -> int:
    """A size out of the header: side `axis` of the canonical tensor, for what the config does not say."""
    for alias in names[canonical]:
        if alias.name in file:
            shape = file.tensors[alias.name].shape
            shape = shape[::-1] if alias.transposed else shape
            if -len(shape) <= axis < len(shape) and shape[axis] > 0:
                return shape[axis]
            raise bad(file.name, "shape", f"{alias.name} is {list(shape)}")
    raise bad(file.name, "missing_tensor", f"{names[canonical][0].name} is not in the file")


def sizes_of(file: TensorFile, names: Names) -> Sizes:
    """All sizes out of the header, for a family that says them nowhere else."""
    return Sizes(side(file, names, "W_enc", 0), side(file, names, "W_enc", 1), side(file, names, "W_dec", 1))


def widest(weights: Mapping[str, Weight]) -> str:
    """The type that holds all of `weights` without loss; one number for all features has any."""
    found = {weight.stored.dtype for weight in weights.values() if not weight.broadcast}
    if len(found) == 1:
        return found.pop()
    return "float64" if "float64" in found else "float32"


def check_k(k: int | None, d_sae: int, where: str) -> int:
    """TopK's k, which must be in [1, d_sae]."""
    if k is None:
        raise SAEInvalidError(f"{where}: a TopK SAE without k", check="k")
    if not 1 <= k <= d_sae:
        raise SAEInvalidError(f"{where}: k is {k}, the SAE has {d_sae} features", check="k")
    return k


def layout(
    file: TensorFile,
    weights: dict[str, Weight],
    recipe: Recipe,
    sizes: Sizes,
    *,
    architecture: str,
    trained_on: str | None = None,
    trained_layer: int | None = None,
    hook_name: str | None = None,
    hook_point: HookPoint | None = None,
    hook_point_out: HookPoint | None = None,
    norms_folded: bool = False,
    warnings: Collection[str] = (),
    settled: Iterable[tuple[Config, Keys, str]] = (),
    left: Mapping[str, str] = {},
    extras: Collection[str] = (),
    prepend_bos: bool | None = None,
    unit_decoder: bool = False,
    ones_only: Collection[str] = (),
    never_negative: Collection[str] = (),
) -> Layout:
    """A `Layout` whose weights all come from `file`; called when all its settings have been read.

    settled: each object of settings, its keys, and what goes before their names on record. left: stored tensors that
    play no part, each with the reason. extras: names of a pickle's plain values that are known.
    """
    account = Account()
    for cfg, keys, at in settled:
        account.settle(cfg, keys, at)
    account.tensors(file, left)
    account.extras(file, extras)
    if trained_layer is None:
        trained_layer = hook_point.layer if hook_point else parse_layer(hook_name)
    description = SaeDescription(
        format="",
        architecture=architecture,
        d_in=sizes.d_in,
        d_sae=sizes.d_sae,
        d_out=sizes.d_out,
        dtype=widest(weights),
        has_threshold=recipe.activation == "jumprelu",
        trained_on=trained_on,
        trained_layer=trained_layer,
        hook_name=hook_name,
        hook_point=hook_point,
        hook_point_out=hook_point_out,
        norms_folded=norms_folded,
        hooks_read=HOOKS_READ,
        prepend_bos=prepend_bos,
        ignored=account.ignored,
        warnings=(*warnings, *account.warnings),
    )
    return Layout(
        description, recipe, weights, (file.name,), unit_decoder, frozenset(ones_only), frozenset(never_negative)
    )
