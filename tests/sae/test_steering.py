"""Differences of edits against the plain per-token formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_actor.domain.refs import Edit, Method, When
from sae_actor.errors import BadRequestError, FeatureOutOfRangeError, SAEUnsupportedError
from sae_actor.sae import Steering, resolve_units
from tests.sae.reference import RECIPES, random_sae

METHODS: tuple[Method, ...] = ("add", "set", "scale", "cap", "project", "set_projection")
ON_ACTIVATION: tuple[Method, ...] = ("set", "scale", "cap")


def activations(width: int, read: int, n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, width, dtype=dtype) * 2 + 0.3, torch.randn(n, read, dtype=dtype) * 2 + 0.3


def mixed_edits() -> list[Edit]:
    """Every method, several projections, two edits on one feature."""
    return [
        Edit(3, 2.5),
        Edit(3, 0.5, "scale"),
        Edit(5, 4.0, "set"),
        Edit(9, 0.1, "cap"),
        Edit(11, -1.5, "add"),
        Edit(12, 0.0, "project"),
        Edit(13, 2.0, "set_projection"),
        Edit(14, 3.0, "project"),
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_mixed_edits_equal_the_plain_formula(name: str) -> None:
    torch.manual_seed(4)
    sae, plain = random_sae(name)
    edits = mixed_edits()
    x, x_read = activations(sae.spec.d_out, sae.spec.d_in)
    if "transcoder" not in name:
        x_read = x
    active = torch.rand(len(edits), len(x)) < 0.6
    active[:, 0] = False
    steering = Steering.prepare(sae, edits)
    delta, held = steering.difference(x, active, x_read)
    rebuilt, _ = steering.reconstruct(x, active, x_read)
    assert torch.equal(held, active)
    for t, (row, row_read) in enumerate(zip(x.numpy(), x_read.numpy(), strict=True)):
        here = [edit for n, edit in enumerate(edits) if active[n, t]]
        np.testing.assert_allclose(delta[t].numpy(), plain.difference(row, here, row_read), rtol=1e-8, atol=1e-8)
        y = plain.decode(plain.edited(plain.encode(row_read), here), row_read)
        y = y + plain.projected(y, row_read, here)
        np.testing.assert_allclose(rebuilt[t].numpy(), y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["jumprelu", "topk", "layer norm", "dataset-wise", "topk rescaled"])
def test_each_method_alone(name: str, method: Method) -> None:
    torch.manual_seed(5)
    sae, plain = random_sae(name)
    x, _ = activations(sae.spec.d_out, sae.spec.d_in)
    edit = Edit(7, 1.7, method)
    delta, _ = Steering.prepare(sae, [edit]).difference(x, torch.ones(1, len(x), dtype=torch.bool))
    want = np.stack([plain.difference(row, [edit], row) for row in x.numpy()])
    np.testing.assert_allclose(delta.numpy(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ON_ACTIVATION)
@pytest.mark.parametrize("name", RECIPES)
def test_edits_of_activations_are_differences_of_decodes(name: str, method: Method) -> None:
    torch.manual_seed(6)
    sae, plain = random_sae(name)
    x, x_read = activations(sae.spec.d_out, sae.spec.d_in)
    edits = [Edit(feature, 0.4, method) for feature in range(0, 64, 3)]
    active = torch.ones(len(edits), len(x), dtype=torch.bool)
    delta, _ = Steering.prepare(sae, edits).difference(x, active, x_read)
    for t, row in enumerate(x_read.numpy()):
        f = plain.encode(row)
        want = plain.decode(plain.edited(f, edits), row) - plain.decode(f, row)
        np.testing.assert_allclose(delta[t].numpy(), want, rtol=1e-8, atol=1e-8)


def test_rows_without_an_edit_keep_their_bits() -> None:
    torch.manual_seed(7)
    sae, _ = random_sae("layer norm", dtype=torch.float32)
    x = torch.randn(6, sae.spec.d_in).to(torch.bfloat16)
    x[0, 0], x[1, 0], x[2] = -0.0, torch.nan, torch.inf
    active = torch.zeros(2, 6, dtype=torch.bool)
    active[0, 4] = active[1, 5] = True
    steering = Steering.prepare(sae, [Edit(1, 50.0), Edit(2, 9.0, "set_projection")])
    edited, held = steering.apply(x, active)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited[:4].view(torch.int16), x[:4].view(torch.int16))
    assert not torch.equal(edited[4], x[4])
    assert not torch.equal(edited[5], x[5])
    delta, _ = steering.difference(x, active)
    assert delta.dtype == torch.bfloat16
    assert (delta[:4] == 0).all()
    assert torch.equal(held, active)


def test_apply_rounds_once() -> None:
    torch.manual_seed(8)
    sae, _ = random_sae("standard", dtype=torch.float32)
    x = (torch.randn(50, sae.spec.d_in) * 30).to(torch.bfloat16)
    active = torch.ones(1, 50, dtype=torch.bool)
    edited, _ = Steering.prepare(sae, [Edit(2, 3.3)]).apply(x, active)
    assert torch.equal(edited, (x.float() + 3.3 * sae.W_dec[2]).to(torch.bfloat16))


@pytest.mark.parametrize("name", ["jumprelu", "topk"])
def test_conditions_narrow_where_an_edit_holds(name: str) -> None:
    torch.manual_seed(11)
    sae, plain = random_sae(name)
    x, _ = activations(sae.spec.d_out, sae.spec.d_in, n=60)
    edits = [Edit(3, 2.0, when=When(8, 0.1)), Edit(4, 0.0, "project", when=When(9, 0.2)), Edit(5, 1.0, "set")]
    active = torch.rand(3, 60) < 0.7
    steering = Steering.prepare(sae, edits)
    delta, held = steering.difference(x, active)
    acts = np.stack([plain.encode(row) for row in x.numpy()])
    want = active.numpy() & np.stack([acts[:, 8] > 0.1, acts[:, 9] > 0.2, np.ones(60, dtype=bool)])
    assert (held.numpy() == want).all()
    assert 0 < held[0].sum() < active[0].sum()
    for t, row in enumerate(x.numpy()):
        here = [edit for n, edit in enumerate(edits) if want[n, t]]
        np.testing.assert_allclose(delta[t].numpy(), plain.difference(row, here, row), rtol=1e-9, atol=1e-9)
    _, held_again = steering.reconstruct(x, active)
    assert torch.equal(held, held_again)


def test_no_edits_reconstruct_and_difference() -> None:
    sae, _ = random_sae("topk", dtype=torch.float32)
    x = torch.randn(4, sae.spec.d_in)
    steering = Steering.prepare(sae, [])
    none = torch.zeros(0, 4, dtype=torch.bool)
    assert (steering.difference(x, none).delta == 0).all()
    torch.testing.assert_close(steering.reconstruct(x, none)[0], sae(x))


def test_no_rows() -> None:
    sae, _ = random_sae("layer norm", dtype=torch.float32)
    edits = mixed_edits()
    delta, _ = Steering.prepare(sae, edits).difference(torch.zeros(0, 24), torch.zeros(len(edits), 0, dtype=torch.bool))
    assert delta.shape == (0, 24)


def test_adding_reads_no_encoder() -> None:
    """`add` and `project` alone touch the edited decoder rows and nothing else of the weights."""
    sae, _ = random_sae("jumprelu", dtype=torch.float32)
    sae.W_enc.fill_(torch.nan)
    sae.W_dec[4:].fill_(torch.nan)
    x = torch.randn(3, 24)
    steering = Steering.prepare(sae, [Edit(1, 2.0), Edit(2, 0.0, "project")])
    delta, _ = steering.difference(x, torch.ones(2, 3, dtype=torch.bool))
    assert torch.isfinite(delta).all()


def test_edits_of_several_texts_are_joined() -> None:
    """Each row has the edits of one text: with the others' beside them it comes to the same."""
    torch.manual_seed(15)
    sae, _ = random_sae("jumprelu")
    texts = [mixed_edits(), [Edit(4, 1.0), Edit(12, 0.0, "project")], [Edit(12, 2.0, "set_projection")]]
    apart = [Steering.prepare(sae, edits) for edits in texts]
    x, _ = activations(24, 24, n=9)
    active = torch.zeros(sum(map(len, texts)), 9, dtype=torch.bool)
    at = 0
    for n, edits in enumerate(texts):
        active[at : at + len(edits), 3 * n : 3 * n + 3] = True
        at += len(edits)
    together = Steering.joined(apart)
    for whole, own in (
        (together.difference(x, active)[0], [s.difference for s in apart]),
        (together.reconstruct(x, active)[0], [s.reconstruct for s in apart]),
    ):
        for n, compute in enumerate(own):
            rows = slice(3 * n, 3 * n + 3)
            alone, _ = compute(x[rows], torch.ones(len(texts[n]), 3, dtype=torch.bool))
            torch.testing.assert_close(whole[rows], alone)


def test_refusals() -> None:
    sae, _ = random_sae("standard")
    with pytest.raises(FeatureOutOfRangeError):
        Steering.prepare(sae, [Edit(64, 1.0)])
    with pytest.raises(FeatureOutOfRangeError):
        Steering.prepare(sae, [Edit(1, 1.0, when=When(64, 0.0))])
    with pytest.raises(BadRequestError):
        Steering.prepare(sae, [Edit(1, 1.0, unit="unit")])


@pytest.mark.parametrize(
    ("method", "strength", "limit"),
    [
        ("add", 4e4, 32752.0), ("set", -4e4, 32752.0), ("cap", -4e4, 32752.0), ("scale", 7e4, 65504.0),
        ("project", -7e4, 65504.0), ("set_projection", 7e4, 65504.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("narrow", ["SAE", "model"])
def test_a_strength_beyond_the_type_is_refused_with_both_numbers(
    method: Method, strength: float, limit: float, narrow: str
) -> None:
    """float16 ends at 65504; the decoder's row reaches 2."""
    sae, _ = random_sae("standard", dtype=torch.float32)
    sae.W_dec[3] = 0
    sae.W_dec[3, 5] = -2
    written_in = torch.float32
    if narrow == "SAE":
        sae = sae.to(dtype=torch.float16)
    else:
        written_in = torch.float16
    edit = Edit(3, strength, method)
    if narrow == "model" and method in ("scale", "project"):
        Steering.prepare(sae, [edit], written_in)  # a factor is never written
        return
    with pytest.raises(SAEUnsupportedError, match=f"{abs(strength):g}") as caught:
        Steering.prepare(sae, [Edit(4, 1.0), edit], written_in)
    assert {name: caught.value.fields[name] for name in ("feature", "strength", "limit")} == {
        "feature": 3, "strength": strength, "limit": limit
    }  # fmt: skip
    largest = Edit(3, limit if strength > 0 else -limit, method)
    delta, _ = Steering.prepare(sae, [largest], written_in).difference(
        torch.ones(1, 24, dtype=torch.float16), torch.ones(1, 1, dtype=torch.bool)
    )
    assert method in ("scale", "project") or torch.isfinite(delta).all()


def test_a_cap_above_everything_is_no_overflow() -> None:
    sae, _ = random_sae("standard", dtype=torch.float16)
    steering = Steering.prepare(sae, [Edit(3, 1e6, "cap")], torch.float16)
    x = torch.randn(4, 24, dtype=torch.float16)
    assert (steering.difference(x, torch.ones(1, 4, dtype=torch.bool)).delta == 0).all()


def test_units_become_raw_strengths() -> None:
    sae, plain = random_sae("dataset-wise")
    length = float(np.linalg.norm(plain.written(6, np.ones(24))))
    edits = [
        Edit(6, 3.0, unit="unit"),
        Edit(6, 3.0, unit="norm"),
        Edit(6, 3.0, unit="max"),
        Edit(6, 3.0, "set_projection", unit="norm"),
        Edit(6, 3.0, "set_projection", unit="max"),
        Edit(6, 3.0),
    ]
    resolved = resolve_units(sae, edits, maxima={6: 5.0}, median_norm=10.0)
    assert all(edit.unit == "raw" for edit in resolved)
    want = [3 / length, 30 / length, 15.0, 30.0, 15 * length, 3.0]
    assert [edit.strength for edit in resolved] == pytest.approx(want)


def test_units_that_cannot_be_resolved() -> None:
    sae, _ = random_sae("standard")
    for edit in (Edit(1, 1.0, unit="max"), Edit(1, 1.0, unit="norm")):
        with pytest.raises(SAEUnsupportedError):
            resolve_units(sae, [edit])
    with pytest.raises(BadRequestError):
        resolve_units(sae, [Edit(1, 1.0, "scale", unit="unit")])
    per_row, _ = random_sae("layer norm")
    with pytest.raises(SAEUnsupportedError):
        resolve_units(per_row, [Edit(1, 1.0, unit="unit")])


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(RECIPES)),
    chosen=st.lists(st.tuples(st.integers(0, 63), st.sampled_from(METHODS), st.floats(-20, 20)), max_size=6),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    n=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_any_edits_equal_the_plain_formula(
    *, name: str, chosen: list[tuple[int, Method, float]], dtype: torch.dtype, n: int, seed: int
) -> None:
    torch.manual_seed(seed)
    sae, plain = random_sae(name, dtype=dtype)
    edits = [Edit(feature, strength, method) for feature, method, strength in chosen]
    x, x_read = activations(sae.spec.d_out, sae.spec.d_in, n, dtype)
    active = torch.rand(len(edits), n) < 0.7
    delta, _ = Steering.prepare(sae, edits).difference(x, active, x_read)
    for t in range(n):
        here = [edit for e, edit in enumerate(edits) if active[e, t]]
        want = plain.difference(x[t].double().numpy(), here, x_read[t].double().numpy())
        tight = dtype == torch.float64
        np.testing.assert_allclose(delta[t].double().numpy(), want, rtol=1e-6, atol=1e-6 if tight else 2e-2)
