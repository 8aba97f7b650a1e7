"""Encode, decode and the whole pass against the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_actor.errors import SAEIncompatibleError, SAEUnsupportedError
from sae_actor.sae import SAE
from sae_actor.sae.encoder import BLOCKS, FEW_ROWS, WIDE, product
from sae_actor.sae.sparse import chosen_rows, weighted_rows
from tests.sae.reference import RECIPES, random_sae

TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-4)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RECIPES)
def test_equals_the_plain_formula(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    sae, plain = random_sae(name, dtype=dtype)
    x = torch.randn(7, sae.spec.d_in, dtype=dtype) * 2 + 0.5
    rows = x.double().numpy()
    acts = np.stack([plain.encode(row) for row in rows])
    outputs = np.stack([plain.decode(f, row) for f, row in zip(acts, rows, strict=True)])
    rtol, atol = TOLERANCE[dtype]
    assert (acts != 0).any(axis=1).all()
    np.testing.assert_allclose(sae.encode(x).double().numpy(), acts, rtol=rtol, atol=atol)
    np.testing.assert_allclose(sae(x).double().numpy(), outputs, rtol=rtol, atol=atol)
    if not sae.per_row and "W_skip" not in sae.weights:
        torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["layer norm", "constant norm", "centred"])
def test_decode_alone_raises_where_the_row_is_needed(name: str) -> None:
    sae, _ = random_sae(name)
    with pytest.raises(SAEUnsupportedError, match=r"use sae\(x\)"):
        sae.decode(torch.zeros(2, sae.spec.d_sae))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0, 4)])
@pytest.mark.parametrize("name", ["jumprelu", "topk"])
def test_leading_shapes(name: str, lead: tuple[int, ...]) -> None:
    sae, _ = random_sae(name, dtype=torch.float32)
    x = torch.randn(*lead, sae.spec.d_in)
    assert sae.encode(x).shape == (*lead, sae.spec.d_sae)
    assert sae(x).shape == (*lead, sae.spec.d_out)
    assert sae.decode(sae.encode(x)).shape == (*lead, sae.spec.d_out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["jumprelu", "gated", "topk", "layer norm", "finetuned"])
def test_half_precision_stays_in_its_type(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    sae, _ = random_sae(name, dtype=torch.float32)
    half = sae.to(dtype=dtype)
    assert half.spec.dtype == str(dtype).removeprefix("torch.")
    assert half.nbytes * 2 == sae.nbytes
    x = torch.randn(15, sae.spec.d_in)
    assert half.encode(x).dtype == half(x).dtype == dtype
    errors = (half(x).float() - sae(x)).norm(dim=1) / sae(x).norm(dim=1)
    assert errors.median() < 0.05  # rounding may change what a single row's top k are


def test_zero_row_under_constant_norm_is_finite() -> None:
    sae, _ = random_sae("constant norm", dtype=torch.float32)
    assert torch.isfinite(sae(torch.zeros(1, sae.spec.d_in))).all()


@pytest.mark.parametrize("name", RECIPES)
def test_nan_in_is_nan_out(name: str) -> None:
    sae, _ = random_sae(name, dtype=torch.float32)
    x = torch.randn(3, sae.spec.d_in)
    x[1] = torch.nan
    y = sae(x)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()


def test_wrong_width_says_both_widths() -> None:
    sae, _ = random_sae("standard")
    with pytest.raises(SAEIncompatibleError) as error:
        sae(torch.zeros(2, 25))
    assert error.value.fields == {"sae_d_in": 24, "model_d": 25}
    with pytest.raises(SAEIncompatibleError):
        sae.decode(torch.zeros(2, 65))


def test_heads_are_flattened_and_given_back() -> None:
    torch.manual_seed(3)
    base, _ = random_sae("standard", dtype=torch.float32)
    sae = SAE(base.spec, type(base.recipe)(heads=True), base.weights)
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(sae(x), base(x.flatten(2)).reshape(2, 5, 4, 6))
    torch.testing.assert_close(sae.encode(x), base.encode(x.flatten(2)))
    torch.testing.assert_close(sae(x.flatten(2)), base(x.flatten(2)))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    d_sae=st.integers(1, 200),
    d_out=st.integers(1, 40),
    density=st.floats(0, 1),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_sparse_decode_equals_the_product(
    *, n: int, d_sae: int, d_out: int, density: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_out, generator=generator, dtype=torch.float64).to(dtype)
    acts = torch.rand(n, d_sae, generator=generator, dtype=torch.float64)
    acts = (acts * (torch.rand(n, d_sae, generator=generator) < density)).to(dtype)
    want = acts.double() @ W_dec.double()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(weighted_rows(acts, W_dec).double(), want, rtol=4 * eps, atol=64 * eps)
    k = min(d_sae, 1 + int(density * 8))
    values, features = acts.topk(k, dim=1)
    kept = torch.zeros_like(acts).scatter_(1, features, values)
    got = chosen_rows(features, values, W_dec).double()
    torch.testing.assert_close(got, kept.double() @ W_dec.double(), rtol=4 * eps, atol=64 * eps)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("m", [40, WIDE, WIDE + 4, WIDE + BLOCKS])
def test_the_product_of_few_rows_is_the_product(m: int, dtype: torch.dtype, *, turned: bool) -> None:
    generator = torch.Generator().manual_seed(m)
    W = torch.randn(m, 24, generator=generator).T if turned else torch.randn(24, m, generator=generator)
    W = W.to(dtype)
    for n in (0, 1, 2, FEW_ROWS, FEW_ROWS + 1):
        z = torch.randn(n, 24, generator=generator).to(dtype)
        made = product(z, W)
        assert made.is_contiguous()
        torch.testing.assert_close(made, z @ W)
