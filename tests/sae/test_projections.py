"""Projections: all that hold at a row act jointly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_actor.domain.refs import Edit, When
from sae_actor.sae import Steering
from tests.sae.reference import random_sae
from tests.sae.test_steering import activations


def test_dependent_projections_meet_in_the_middle() -> None:
    """The same direction wanted at 2 and at 6: least squares gives 4; an opposite request is no contradiction."""
    torch.manual_seed(9)
    sae, _ = random_sae("standard")
    x, _ = activations(sae.spec.d_out, sae.spec.d_in)
    active = torch.ones(2, len(x), dtype=torch.bool)
    twice = [Edit(1, 2.0, "set_projection"), Edit(1, 6.0, "set_projection")]
    delta, _ = Steering.prepare(sae, twice).difference(x, active)
    v = sae.W_dec[1] / sae.W_dec[1].norm()
    torch.testing.assert_close((x + delta) @ v, torch.full((len(x),), 4.0, dtype=torch.float64))


def test_joint_projection_removes_every_direction() -> None:
    torch.manual_seed(10)
    sae, _ = random_sae("jumprelu")
    sae.W_dec[2] = sae.W_dec[1] + 0.01 * sae.W_dec[2]  # nearly parallel
    x, _ = activations(sae.spec.d_out, sae.spec.d_in)
    edits = [Edit(i, 0.0, "project") for i in (1, 2, 3)]
    delta, _ = Steering.prepare(sae, edits).difference(x, torch.ones(3, len(x), dtype=torch.bool))
    assert ((x + delta) @ sae.W_dec[[1, 2, 3]].T).abs().max() < 1e-9


def test_each_row_is_solved_for_the_projections_that_hold_there() -> None:
    torch.manual_seed(12)
    sae, _ = random_sae("standard")
    edits = [Edit(i, 0.0, "project") for i in range(10)]
    steering = Steering.prepare(sae, edits)
    x, _ = activations(24, 24, n=400)
    active = torch.rand(10, 400) < 0.5
    delta, _ = steering.difference(x, active)
    t = 17
    V = torch.nn.functional.normalize(sae.W_dec[:10][active[:, t]])
    assert ((x[t] + delta[t]) @ V.T).abs().max() < 1e-9


class Factorizations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls that factor or invert matrices, however many each of them takes at once."""

    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += any(kind in func.__name__ for kind in ("cholesky_ex", "eigh", "svd", "inv", "lstsq", "solve_ex"))
        return func(*args, **(kwargs or {}))


def test_many_conditions_are_solved_at_once() -> None:
    """Every row of a long prompt has other directions: half of 256."""
    torch.manual_seed(13)
    sae, _ = random_sae("standard", d_in=320, d_sae=512, dtype=torch.float32)
    steering = Steering.prepare(sae, [Edit(i, 0.5, "project", when=When(i + 256, 0.0)) for i in range(256)])
    x = torch.randn(512, 320)
    with Factorizations() as made:  # type: ignore[no-untyped-call]
        delta, held = steering.difference(x, torch.ones(256, 512, dtype=torch.bool))
    assert 0 < made.number < 16  # a pseudo-inverse for each row took fifty times as long
    assert len(torch.unique(held.T, dim=0)) == 512
    rows = sae.W_dec.double().numpy()
    for t in range(0, 512, 50):
        V = rows[:256][held[:, t].numpy()]
        V = V / np.linalg.norm(V, axis=1, keepdims=True)
        want = np.linalg.pinv(V) @ (-0.5 * (V @ x[t].double().numpy()))
        np.testing.assert_allclose(delta[t].numpy(), want, rtol=1e-4, atol=1e-4)
    assert steering.nbytes < 6 * 256 * 320 * 8, "no solution is kept"


@pytest.mark.parametrize("dependent", ["equal", "opposite", "zero", "sum"])
def test_dependent_directions_are_least_squares(dependent: str) -> None:
    torch.manual_seed(14)
    sae, _ = random_sae("standard")
    rows = sae.W_dec
    rows[2] = {"equal": 3 * rows[1], "opposite": -2 * rows[1], "zero": 0 * rows[1], "sum": rows[0] + rows[1]}[dependent]
    edits = [Edit(i, float(i + 1), "set_projection" if i % 2 else "project") for i in (0, 1, 2, 3, 1, 2)]
    edits[4:] = [Edit(1, 7.0, "set_projection"), Edit(2, -3.0, "set_projection")]
    x, _ = activations(24, 24, n=80)
    active = torch.rand(6, 80) < 0.6
    delta, _ = Steering.prepare(sae, edits).difference(x, active)
    for t in range(80):
        here = [edit for n, edit in enumerate(edits) if active[n, t]]
        V = np.stack([rows[edit.feature].numpy() for edit in here]) if here else np.zeros((1, 24))
        V = V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), 1e-300)
        along = V @ x[t].numpy()
        wanted = [e.strength * a if e.method == "project" else e.strength for e, a in zip(here, along, strict=False)]
        want = np.linalg.pinv(V, rcond=1e-7) @ (np.array(wanted or [0.0]) - along)
        np.testing.assert_allclose(delta[t].numpy(), want, rtol=1e-7, atol=1e-7)
