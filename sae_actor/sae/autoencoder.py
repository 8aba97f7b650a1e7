"""The SAE itself: encode, decode, the whole pass."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from ..domain.refs import SaeDescription
from ..errors import SAEIncompatibleError, SAEUnsupportedError
from ..formats.layout import Recipe
from .encoder import Active, Encoder, k_largest
from .sparse import active_rows, chosen_rows, few, weighted_rows

LAYER_NORM_EPS = 1e-5

CHOOSING = ("topk", "signed-topk", "abstopk", "groupmax")
"""Activations whose features compete: computing one needs the others."""


class SaeSpec(SaeDescription, frozen=True, kw_only=True):
    """The description of the files; `dtype` is the type that the weights have in memory, and of the arithmetic."""

    stored_dtype: str
    """Type of the weights on disk."""


class Rows(NamedTuple):
    """The normalisation of each row: x = scale · x′ + mean, each [n, 1] or None."""

    mean: Tensor | None
    scale: Tensor | None


NO_ROWS = Rows(None, None)


class SAE:
    """One sparse autoencoder: immutable, without state between calls.

        x′ = norm(scale_in · x)                  per row: layer norm, constant norm, mean removed; or nothing
        z  = x′ − b_dec  or  x′
        h  = z @ W_enc + b_enc;  h · ‖W_dec[i]‖ where the decoder's norms count
        f  = activation(h)                       `Encoder`, `k_largest`
        g  = f · gain                            gain_i = row_scale · scaling_factor_i / ‖W_dec[i]‖, of those there are
        x̂  = norm⁻¹(scale_out · (g @ W_dec + b_dec)) + x @ W_skipᵀ

        layer_norm      mu = mean(x), s = std(x) over n − 1;  (x − mu) / (s + 1e-5);  back: y · s + mu
        constant_norm   c = √d_in / ‖x‖;  x · c;  back: y / c

    Inputs may have any float type and any leading shape; arithmetic and results have the type of the weights,
    except that a row's statistics are never taken in half precision. A last size other than d_in is
    `SAEIncompatibleError`.
    """

    def __init__(self, spec: SaeSpec, recipe: Recipe, weights: dict[str, Tensor]) -> None:
        self.spec = spec
        self.recipe = recipe
        self.weights = weights
        self.W_dec = weights["W_dec"]
        """[d_sae, d_out]"""
        self.b_dec = weights["b_dec"]
        """[d_out]"""

    def __repr__(self) -> str:
        s = self.spec
        sizes = f"d_in={s.d_in}, d_sae={s.d_sae}, d_out={s.d_out}"
        return f"SAE({s.format} {s.architecture}, {sizes}, {s.dtype}, {self.device})"

    @property
    def encodes(self) -> bool:
        """It has an encoder; vectors have none."""
        return self.recipe.activation != "none"

    @cached_property
    def encoder(self) -> Encoder:
        """`SAEUnsupportedError` for vectors."""
        vectors = {n: self.weights[n] for n in ("threshold", "b_gate", "b_mag", "r_mag") if n in self.weights}
        return Encoder(self.recipe.activation, self.W_enc, self.weights.get("b_enc"), **vectors)

    @property
    def W_enc(self) -> Tensor:  # noqa: N802 - the formula's name
        """[d_in, d_sae]; `SAEUnsupportedError` for vectors."""
        if not self.encodes:
            raise SAEUnsupportedError("vectors have no encoder: they can be written, not read")
        return self.weights["W_enc"]

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    @property
    def independent(self) -> bool:
        """Each feature's activation can be computed without the others'."""
        return self.recipe.activation not in CHOOSING

    @property
    def per_row(self) -> bool:
        """The output's scale or mean is taken from each row of the input, so `decode` alone cannot undo it."""
        return self.recipe.norm_output and (self.recipe.row_norm != "none" or self.recipe.centre)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE on another device or in another type; itself if nothing changes."""
        weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.weights.items()}
        if all(weights[name] is tensor for name, tensor in self.weights.items()):
            return self
        held = str(weights["W_dec"].dtype).removeprefix("torch.")
        return SAE(replace(self.spec, dtype=held), self.recipe, weights)

    # encode

    def encode(self, x: Tensor) -> Tensor:
        """Activations of all features: [..., d_in] → [..., d_sae]."""
        flat, lead, _ = self._flat(x)
        return self.encode_rows(self.read(flat)[0]).reshape(*lead, self.spec.d_sae)

    def encode_rows(self, z: Tensor) -> Tensor:
        """f for what `read` gave: [n, d_in] → [n, d_sae]."""
        if self.independent:
            return self.encoder(z)
        features, values = self.choose(z)
        return values.new_zeros(len(z), self.spec.d_sae).scatter_(1, features, values)

    def choose(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The features that are on, and their activations: [n, d_in] → indices, values [n, k] (TopK and its like)."""
        h = self.encoder.pre(z)  # [n, d_sae]
        if self.recipe.decoder_norm:
            h = h.mul_(self.decoder_norms)  # [n, d_sae]
        assert self.recipe.k is not None
        return k_largest(self.recipe.activation, h, self.recipe.k)

    def read(self, x: Tensor) -> tuple[Tensor, Rows]:
        """z for x [n, d_in], and what normalising took out of each row."""
        recipe, mean, scale = self.recipe, None, None
        if recipe.centre or recipe.row_norm != "none":
            x = x.to(torch.promote_types(x.dtype, torch.promote_types(self.dtype, torch.float32)))  # [n, d_in]
            if recipe.centre or recipe.row_norm == "layer_norm":
                mean = x.mean(dim=-1, keepdim=True)  # [n, 1]
                x = x - mean
            if recipe.row_norm == "layer_norm":
                scale = x.norm(dim=-1, keepdim=True) / math.sqrt(max(1, self.spec.d_in - 1))  # [n, 1], std of centred x
                x = x / (scale + LAYER_NORM_EPS)
            elif recipe.row_norm == "constant_norm":
                norm = x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)  # a row of zeros stays one
                scale = norm / math.sqrt(self.spec.d_in)  # [n, 1]
                x = x / scale
        z = x.to(self.dtype)  # [n, d_in]
        if recipe.scale_in != 1.0:
            z = z * recipe.scale_in
        if recipe.subtract_b_dec:
            z = z - self.b_dec
        if not recipe.norm_output:
            return z, NO_ROWS
        return z, Rows(*(None if part is None else part.to(self.dtype) for part in (mean, scale)))

    # decode

    def decode(self, acts: Tensor) -> Tensor:
        """The output that activations stand for, without skip terms: [..., d_sae] → [..., d_out].

        `SAEUnsupportedError` if the output's scale depends on the encoded row: `sae(x)` has it.
        """
        if self.per_row:
            raise SAEUnsupportedError(
                f"decode alone cannot undo {self.recipe.row_norm if self.recipe.row_norm != 'none' else 'centring'}: "
                "the row's own statistics are needed, use sae(x)"
            )
        if acts.shape[-1] != self.spec.d_sae:
            raise SAEIncompatibleError(f"{acts.shape[-1]} activations for an SAE of {self.spec.d_sae} features")
        lead = acts.shape[:-1]
        return self.decode_rows(acts.reshape(-1, self.spec.d_sae).to(self.dtype)).reshape(*lead, self.spec.d_out)

    def decode_rows(self, acts: Tensor, rows: Rows = NO_ROWS) -> Tensor:
        """Output for acts [n, d_sae] and the statistics of their rows → [n, d_out]."""
        return self._out(weighted_rows(acts, self.W_dec, self.gain), rows)

    def __call__(self, x: Tensor) -> Tensor:
        """The whole pass, normalisation undone and skip terms in: [..., d_in] → [..., d_out]."""
        flat, lead, heads = self._flat(x)
        z, rows = self.read(flat)
        if self.independent:
            y = self._out(self._sum(z), rows)  # [n, d_out]
        else:
            features, values = self.choose(z)  # [n, k]
            if self.gain is not None:
                values = values * self.gain[features]
            y = self._out(chosen_rows(features, values, self.W_dec), rows)  # [n, d_out]
        return self.skip(y, flat).reshape(*lead, *(heads or (self.spec.d_out,)))

    def _sum(self, z: Tensor) -> Tensor:
        """g @ W_dec for independent features, without writing the zeros if that is slower."""
        n = len(z)
        if z.device.type != "cpu":
            return weighted_rows(self.encoder(z), self.W_dec, self.gain)
        f = self.encoder.firing(z, few(n, self.spec.d_sae))
        if isinstance(f, Active):
            return active_rows(f.at, f.values, n, self.W_dec, self.gain)
        return (f if self.gain is None else f * self.gain) @ self.W_dec

    def skip(self, y: Tensor, x: Tensor) -> Tensor:
        """y + x @ W_skipᵀ for y [n, d_out], x [n, d_in]; y without a skip connection."""
        W_skip = self.weights.get("W_skip")
        return y if W_skip is None else torch.addmm(y, x.to(self.dtype), W_skip.T)

    def _out(self, y: Tensor, rows: Rows) -> Tensor:
        y = y + self.b_dec  # [n, d_out]
        if self.recipe.scale_out != 1.0:
            y = y * self.recipe.scale_out
        if rows.scale is not None:
            y = y * rows.scale
        return y if rows.mean is None else y + rows.mean

    # decoder rows

    def decoder_rows(self, features: Tensor) -> Tensor:
        """What one unit of each feature writes, without the row's own scale: [m] → [m, d_out].

        W_dec[i] times every constant scaling of the output; multiply by `Rows.scale` if there is one.
        """
        W = self.W_dec[features]  # [m, d_out]
        if self.recipe.decoder_norm:
            W = W / _divisor(row_norms(W).to(W.dtype))[:, None]
        scaling = self.weights.get("scaling_factor")
        if scaling is not None:
            W = W * scaling[features][:, None]
        return W * (self.recipe.scale_out * self.recipe.row_scale)

    @cached_property
    def decoder_norms(self) -> Tensor:
        """‖W_dec[i]‖, [d_sae]"""
        return row_norms(self.W_dec).to(self.dtype)

    @cached_property
    def gain(self) -> Tensor | None:
        """Factor of each activation before the decoder, [d_sae]; None for 1."""
        gain = self.weights.get("scaling_factor")
        if self.recipe.decoder_norm:
            gain = (1.0 if gain is None else gain) / _divisor(self.decoder_norms)
        if self.recipe.row_scale != 1.0:
            one = self.W_dec.new_ones(self.spec.d_sae) if gain is None else gain
            gain = one * self.recipe.row_scale
        return gain

    def _flat(self, x: Tensor) -> tuple[Tensor, torch.Size, tuple[int, int] | None]:
        """x as [n, d_in], its leading shape, and [n_heads, d_head] if the heads were separate."""
        d_in = self.spec.d_in
        if x.ndim and x.shape[-1] == d_in:
            return x.reshape(-1, d_in), x.shape[:-1], None
        if self.recipe.heads and x.ndim > 1 and x.shape[-1] * x.shape[-2] == d_in:
            return x.reshape(-1, d_in), x.shape[:-2], (x.shape[-2], x.shape[-1])
        raise SAEIncompatibleError(
            f"activations of width {x.shape[-1] if x.ndim else 0} for an SAE with d_in {d_in}",
            sae_d_in=d_in,
            model_d=x.shape[-1] if x.ndim else 0,
        )


def row_norms(W: Tensor) -> Tensor:
    """‖W[i]‖, in float32 at least."""
    norms: Tensor = torch.linalg.vector_norm(W, dim=-1, dtype=torch.promote_types(W.dtype, torch.float32))
    return norms


def _divisor(norms: Tensor) -> Tensor:
    """A row of zeros writes nothing, whatever it is divided by."""
    return norms.masked_fill(norms == 0, 1.0)
