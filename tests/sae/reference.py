"""The formulas of an SAE and of the edits, one token at a time in float64: what the code must equal."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_actor.domain.refs import Edit
from sae_actor.formats.layout import Recipe
from sae_actor.sae import SAE, SaeSpec

Row = NDArray[np.float64]


class PlainSae:
    """Encodes and decodes one row at a time."""

    def __init__(self, recipe: Recipe, weights: dict[str, Tensor]) -> None:
        self.recipe = recipe
        self.w: dict[str, Row] = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self.norms = np.sqrt((self.w["W_dec"] ** 2).sum(axis=1))

    def normalised(self, x: Row) -> tuple[Row, float, float]:
        """x', and scale and mean that undo it."""
        scale, mean = 1.0, 0.0
        if self.recipe.centre or self.recipe.row_norm == "layer_norm":
            mean = float(x.mean())
            x = x - mean
        if self.recipe.row_norm == "layer_norm":
            scale = float(x.std(ddof=1))
            x = x / (scale + 1e-5)
        if self.recipe.row_norm == "constant_norm":
            scale = math.sqrt(float((x**2).sum())) / math.sqrt(len(x))
            x = x / scale
        if not self.recipe.norm_output:
            scale, mean = 1.0, 0.0
        return x * self.recipe.scale_in, scale, mean

    def encode(self, x: Row) -> Row:
        w, recipe = self.w, self.recipe
        z = self.normalised(x)[0]
        if recipe.subtract_b_dec:
            z = z - w["b_dec"]
        p = z @ w["W_enc"]
        if recipe.activation == "gated":
            magnitude = np.maximum(p * np.exp(w["r_mag"]) + w["b_mag"], 0)
            return np.where(p + w["b_gate"] > 0, magnitude, 0.0)
        h = p + w["b_enc"]
        if recipe.activation == "jumprelu":
            return np.where(h > w["threshold"], np.maximum(h, 0), 0.0)
        if recipe.activation == "relu":
            return np.maximum(h, 0)
        if recipe.activation == "tanh-relu":
            return np.tanh(np.maximum(h, 0))
        if recipe.decoder_norm:
            h = h * self.norms
        assert recipe.k is not None
        f = np.zeros_like(h)
        if recipe.activation == "groupmax":
            width = len(h) // recipe.k
            chosen = [g * width + int(np.argmax(h[g * width : (g + 1) * width])) for g in range(recipe.k)]
        else:
            size = np.abs(h) if recipe.activation == "abstopk" else h
            chosen = list(np.argsort(-size, kind="stable")[: recipe.k])
        for i in chosen:
            f[i] = h[i] if recipe.activation in ("abstopk", "signed-topk") else max(h[i], 0.0)
        return f

    def written(self, i: int, x: Row) -> Row:
        """Effective decoder row of feature i at the row x."""
        d = self.w["W_dec"][i] * self.recipe.row_scale * self.recipe.scale_out * self.normalised(x)[1]
        if self.recipe.decoder_norm:
            d = d / self.norms[i]
        if "scaling_factor" in self.w:
            d = d * self.w["scaling_factor"][i]
        return np.asarray(d)

    def decode(self, f: Row, x: Row) -> Row:
        """Output for activations f, with the statistics and the skip term of x."""
        _, scale, mean = self.normalised(x)
        y = np.zeros(len(self.w["b_dec"]))
        for i in np.flatnonzero(f):
            y = y + f[i] * self.written(int(i), x)
        y = y + self.w["b_dec"] * self.recipe.scale_out * scale + mean
        return y + self.w["W_skip"] @ x if "W_skip" in self.w else np.asarray(y)

    def edited(self, f: Row, edits: list[Edit]) -> Row:
        """Activations after the edits on them."""
        g = f.copy()
        for edit in edits:
            a, s = float(f[edit.feature]), edit.strength
            g[edit.feature] += {"add": s, "set": s - a, "scale": (s - 1) * a, "cap": min(a, s) - a}.get(edit.method, 0)
        return g

    def projected(self, y: Row, x: Row, edits: list[Edit]) -> Row:
        """What the projections among `edits` add to y."""
        directions, missing = [], []
        for edit in edits:
            if edit.method in ("project", "set_projection"):
                d = self.written(edit.feature, x)
                v = d / math.sqrt(float(d @ d))
                along = float(y @ v)
                directions.append(v)
                missing.append((edit.strength * along if edit.method == "project" else edit.strength) - along)
        if not directions:
            return np.zeros_like(y)
        return np.asarray(np.linalg.pinv(np.stack(directions), rcond=1e-7) @ np.array(missing))

    def difference(self, x: Row, edits: list[Edit], x_read: Row) -> Row:
        f = self.encode(x_read)
        delta = self.projected(x, x_read, edits)
        for edit in edits:
            a, s, d = float(f[edit.feature]), edit.strength, self.written(edit.feature, x_read)
            factor = {"add": s, "set": s - a, "scale": (s - 1) * a, "cap": min(a, s) - a}.get(edit.method, 0)
            delta = delta + factor * d
        return np.asarray(delta)


RECIPES: dict[str, Recipe] = {
    "standard": Recipe(),
    "subtracting": Recipe(subtract_b_dec=True),
    "tanh-relu": Recipe(activation="tanh-relu", subtract_b_dec=True),
    "gated": Recipe(activation="gated", subtract_b_dec=True),
    "jumprelu": Recipe(activation="jumprelu"),
    "topk": Recipe(activation="topk", k=5, subtract_b_dec=True),
    "topk rescaled": Recipe(activation="topk", k=5, decoder_norm=True),
    "signed-topk": Recipe(activation="signed-topk", k=24),
    "abstopk": Recipe(activation="abstopk", k=5),
    "groupmax": Recipe(activation="groupmax", k=4),
    "layer norm": Recipe(activation="topk", k=6, row_norm="layer_norm", subtract_b_dec=True),
    "constant norm": Recipe(row_norm="constant_norm", subtract_b_dec=True),
    "centred": Recipe(centre=True, subtract_b_dec=True),
    "centred constant norm": Recipe(activation="jumprelu", centre=True, row_norm="constant_norm"),
    "dataset-wise": Recipe(activation="jumprelu", scale_in=2.5, scale_out=0.4),
    "embedding": Recipe(activation="jumprelu", scale_in=0.3, row_scale=3.0),
    "different scales": Recipe(scale_in=0.5, scale_out=3.0),
    "transcoder": Recipe(norm_output=False, row_norm="layer_norm"),
    "skip transcoder": Recipe(activation="jumprelu", norm_output=False),
    "finetuned": Recipe(),
}


def random_weights(recipe: Recipe, d_in: int, d_sae: int, d_out: int, *, skip: bool, scaled: bool) -> dict[str, Tensor]:
    """Weights of roughly unit size, so that about half of the features fire."""
    weights = {
        "W_enc": torch.randn(d_in, d_sae) / math.sqrt(d_in),
        "W_dec": torch.randn(d_sae, d_out) / math.sqrt(d_out) * torch.rand(d_sae, 1).add(0.5),
        "b_dec": torch.randn(d_out) * 0.3,
    }
    if recipe.activation == "gated":
        weights |= {name: torch.randn(d_sae) * 0.3 for name in ("b_gate", "b_mag", "r_mag")}
    else:
        weights["b_enc"] = torch.randn(d_sae) * 0.2
    if recipe.activation == "jumprelu":
        weights["threshold"] = torch.randn(d_sae) * 0.3 + 0.2
    if skip:
        weights["W_skip"] = torch.randn(d_out, d_in) / math.sqrt(d_in)
    if scaled:
        weights["scaling_factor"] = torch.rand(d_sae) + 0.5
    return weights


def random_sae(name: str, d_in: int = 24, d_sae: int = 64, dtype: torch.dtype = torch.float64) -> tuple[SAE, PlainSae]:
    """A random SAE of the recipe `name` and its plain twin, with equal weights."""
    recipe = RECIPES[name]
    d_out = d_in + 8 if "transcoder" in name else d_in
    weights = random_weights(recipe, d_in, d_sae, d_out, skip="skip" in name, scaled=name == "finetuned")
    weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
    spec = SaeSpec(
        format="test",
        architecture=name,
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_out,
        hook_point=None,
        hook_point_out=None,
        hook_name=None,
        trained_on=None,
        trained_layer=None,
        dtype=str(dtype).removeprefix("torch."),
        stored_dtype=str(dtype).removeprefix("torch."),
    )
    return SAE(spec, recipe, weights), PlainSae(recipe, weights)
