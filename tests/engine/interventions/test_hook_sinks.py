"""Sinks at a hook point: what they are measured by, and what is left alone there."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from sae_actor.domain.refs import Edit, Exclusion, Mode
from sae_actor.engine.interventions.hook_site import HookFault
from sae_actor.engine.interventions.positions import TokenKinds
from sae_actor.engine.interventions.sae_intervention import SaeIntervention
from sae_actor.sae import SAE
from sae_actor.sae.steering import Steering
from tests.engine.asking import active
from tests.engine.interventions.bench import PROMPT, Bench, activations


def test_sinks_are_known_by_the_prompts_median(sae: SAE) -> None:
    edit = Edit(feature=2, strength=1.0, exclude=("sink",))
    bench = Bench(sae, active(5, edit))
    x = activations()
    x /= x.norm(dim=-1, keepdim=True)
    x[3] *= 5.01
    x[4] *= 4.99
    new = bench.run(x)
    assert torch.equal(new[[0, 3]], x[[0, 3]])
    assert (bench.applied.tally.edited, bench.applied.tally.excluded) == ({1, 2, 4, 5}, {0, 3})
    # Later steps are measured with the same median.
    large, small = 6 * x[1:2], 4 * x[1:2]
    assert torch.equal(bench.run(large, first=PROMPT), large)
    assert not torch.equal(bench.run(small, first=PROMPT + 1), small)
    assert (bench.applied.tally.edited, bench.applied.tally.excluded) == ({1, 2, 4, 5, 7}, {0, 3, 6})


def measured_by(limit: float, count: int) -> Tensor:
    """Rows of norm 1, then as many of norm `limit` / 5: whose median it is tells whether `limit` · 0.99 is a sink."""
    x = activations(2 * count)
    x /= x.norm(dim=-1, keepdim=True)
    x[count:] *= limit / 5
    return x


def test_the_median_is_of_the_first_positions_of_the_window(sae: SAE) -> None:
    """5 of 6 rows behind it do not count, those of the first piece among them; nor does what a later piece brings."""
    x = measured_by(50.0, 3)
    for rows in (6, 4, 3):
        bench = Bench(sae, active(5, Edit(feature=2, strength=1.0)), window=3)
        assert bench.applied.first_piece == 3
        bench.run(x[:rows])
        if rows < len(x):
            bench.run(x[rows:], first=rows)
        assert (bench.applied.tally.edited, bench.applied.tally.excluded) == ({1, 2}, {0, 3, 4, 5}), rows


def test_a_short_prompt_is_measured_whole(sae: SAE) -> None:
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0)))
    assert bench.applied.first_piece == PROMPT
    bench.run(measured_by(20.0, 3))
    assert bench.applied.tally.excluded == {0}, "the median is the lower of the two in the middle, 1"
    bench.run(6 * measured_by(5.0, 1)[:1], first=PROMPT)
    assert bench.applied.tally.excluded == {0, PROMPT}


def test_a_log_of_before_the_window_means_the_median_of_the_whole_prompt(sae: SAE) -> None:
    x = torch.cat([measured_by(50.0, 3), 10 * measured_by(5.0, 1)[:1]])
    wanted = {512: {0}, 3: {0, 3, 4, 5, 6}, None: {0}}
    for window, excluded in wanted.items():
        bench = Bench(sae, active(5, Edit(feature=2, strength=1.0)), prompt=7, window=window)
        bench.run(x)
        assert bench.applied.tally.excluded == excluded, window
    assert bench.applied.first_piece == 7
    everywhere = Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=())), window=None)
    assert everywhere.applied.first_piece == 0, "its prompt was read in pieces then, and is now"
    with pytest.raises(HookFault, match="median norm"):
        Bench(sae, active(5, Edit(feature=2, strength=1.0)), prompt=7, window=None).run(x[:6])


def test_edits_of_sinks_are_told(sae: SAE) -> None:
    x = activations()
    x[3] *= 100
    cases: tuple[tuple[tuple[Exclusion, ...], Mode, set[int]], ...] = (
        (("sink",), "steer", set()),
        ((), "steer", {0, 3}),
        (("special",), "steer", {0, 3}),
        ((), "reconstruct", set()),
    )
    for exclude, mode, told in cases:
        described = replace(active(5, Edit(feature=2, strength=1.0, exclude=exclude)), mode=mode)
        bench = Bench(sae)
        marks = TokenKinds((9,) * PROMPT, frozenset({256}), ())
        bench.site.parts.append(
            SaeIntervention(described, Steering.prepare(sae, described.steering), PROMPT, (), marks)
        )
        bench.run(x)
        assert bench.applied.tally.edited_sinks == told, (exclude, mode)
    generated = Bench(sae, active(5, Edit(feature=2, strength=1.0, positions="generated", exclude=())))
    generated.run(x)
    generated.run(100 * x[1:2], first=PROMPT)
    generated.run(x[1:2], first=PROMPT + 1)
    assert generated.applied.tally.edited_sinks == {PROMPT}


def test_sinks_are_reconstructed_where_that_is_asked_for(sae: SAE) -> None:
    x = activations()
    x[3] *= 100
    for edits in ((), (Edit(feature=2, strength=1.0),)):
        bench = Bench(sae, active(5, *edits, mode="reconstruct", exclude=()))
        wanted = sae(x)
        if edits:
            wanted[[1, 2, 4, 5]] += sae.W_dec[2]  # the edit leaves sinks out, the reconstruction does not
        torch.testing.assert_close(bench.run(x), wanted)
        assert bench.applied.tally.edited_sinks == {0, 3}
        assert bench.applied.tally.excluded == set()


def test_the_median_is_measured_even_where_the_prompt_is_not_edited(sae: SAE) -> None:
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0, positions="generated", exclude=("sink",))))
    x = activations()
    assert torch.equal(bench.run(x), x)
    large = 100 * x[1:2]
    assert torch.equal(bench.run(large, first=PROMPT), large)
    assert bench.applied.tally.excluded == {PROMPT}


def test_an_edit_without_the_exclusion_writes_to_sinks(sae: SAE) -> None:
    bench = Bench(
        sae, active(5, Edit(feature=2, strength=1.0, exclude=("sink",)), Edit(feature=3, strength=1.0, exclude=()))
    )
    x = activations()
    new = bench.run(x)
    torch.testing.assert_close(new[0], x[0] + sae.W_dec[3])
    torch.testing.assert_close(new[1], x[1] + sae.W_dec[2] + sae.W_dec[3])
    assert (bench.applied.tally.edited, bench.applied.tally.excluded) == (set(range(PROMPT)), set())
