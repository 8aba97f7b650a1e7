"""What a format's reader hands on: where each canonical tensor lies on disk, and the formula that uses them.

No torch here. `sae.load` turns a `Layout` into an `SAE`; `describe` shows its `description` alone. Canonical
names and shapes:

    W_enc [d_in, d_sae]   b_enc [d_sae]   W_dec [d_sae, d_out]   b_dec [d_out]
    threshold [d_sae]     b_gate, b_mag, r_mag [d_sae]   W_skip [d_out, d_in]   scaling_factor [d_sae]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..domain.refs import BYTES_PER_PARAMETER, SaeDescription

Activation: TypeAlias = Literal[
    "relu", "tanh-relu", "jumprelu", "gated", "topk", "signed-topk", "abstopk", "groupmax", "none"
]
"""`none`: vectors, which have no encoder."""
RowNorm: TypeAlias = Literal["none", "layer_norm", "constant_norm"]


@dataclass(frozen=True)
class Stored:
    """One tensor of one file. `source` says how to reach its bytes; shape and dtype are those on disk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    """The file, links resolved."""
    identity: tuple[int, int, int]
    """Inode, size and modification time (ns) when the header was read: other bytes are refused."""
    offset: int = 0
    """First byte of the data in the file; inside a zip, in the member."""
    member: str | None = None
    """Name of the zip member (npz)."""
    fortran: bool = False
    """Column-major data (npz)."""
    value: Any = None
    """The tensor itself, when its file could only be read as a whole (pickles)."""

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * BYTES_PER_PARAMETER.get(self.dtype, 8)


@dataclass(frozen=True)
class Weight:
    """A canonical tensor: the stored one, and what turns it into the canonical."""

    stored: Stored
    transposed: bool = False
    """Stored with its two sides swapped (torch.nn.Linear)."""
    exponential: bool = False
    """Stored as a logarithm."""
    broadcast: bool = False
    """Stored as one number for all features."""


@dataclass(frozen=True)
class Recipe:
    """The formula of an SAE; `sae.SAE` writes it out. Defaults are those of a plain ReLU SAE."""

    activation: Activation = "relu"
    k: int | None = None
    subtract_b_dec: bool = False
    """z = x' − b_dec before the encoder."""
    row_norm: RowNorm = "none"
    """Normalisation by the row's own statistics."""
    centre: bool = False
    """Trained on a stream whose mean over the width was taken out (centred writing weights): x − mean(x)."""
    norm_output: bool = True
    """Undo `centre` and `row_norm` after the decoder (a transcoder writes elsewhere, and does not)."""
    scale_in: float = 1.0
    """Dataset-wise: x' = scale_in · x."""
    scale_out: float = 1.0
    """Dataset-wise: x̂ = scale_out · (g @ W_dec + b_dec)."""
    row_scale: float = 1.0
    """A constant on the decoder's rows alone, not on b_dec."""
    decoder_norm: bool = False
    """Pre-activations times ‖W_dec[i]‖, activations over it before the decoder. Of features that are on by themselves
    the loader takes it into the matrices."""
    threshold: float | None = None
    """JumpReLU with one number for all features."""
    threshold_of_norm: bool = False
    """JumpReLU: h · ‖W_dec[i]‖ is what has to exceed the threshold; the activation stays h."""
    heads: bool = False
    """Also take and give [..., n_heads, d_head]: hook_z before it is flattened."""


@dataclass(frozen=True)
class Layout:
    description: SaeDescription
    recipe: Recipe
    weights: dict[str, Weight]
    files: tuple[str, ...]
    """Files that hold weights, relative to the SAE's folder."""
    unit_decoder: bool = False
    """The formula holds only for decoder rows of norm 1: the loader looks, and warns."""
    ones_only: frozenset[str] = frozenset()
    """Weights that are left-overs unless they say something: all ones are dropped, other values refused."""
    never_negative: frozenset[str] = frozenset()
    """Weights for which the formula holds only at 0 and above; others are refused."""


def shapes(d_in: int, d_sae: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """Canonical tensor → shape."""
    per_feature = ("b_enc", "threshold", "b_gate", "b_mag", "r_mag", "scaling_factor")
    return {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    } | dict.fromkeys(per_feature, (d_sae,))
