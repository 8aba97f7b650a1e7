"""An intervention on one forward pass: what is written, what is left alone, who is at fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from sae_actor.domain.chats import MessageSpan
from sae_actor.domain.refs import ActiveSae, Edit, Exclusion, HookPoint, Mode, Span
from sae_actor.engine.interventions.edit_sets import MergedEdits
from sae_actor.engine.interventions.hook_points import Architecture, Hook
from sae_actor.engine.interventions.hook_site import HookFault, HookSite
from sae_actor.engine.interventions.hooks import PreparedIntervention, StepRows, hooks_installed
from sae_actor.engine.interventions.positions import TokenKinds
from sae_actor.engine.interventions.sae_intervention import SaeIntervention
from sae_actor.sae import SAE, load_sae
from sae_actor.sae.steering import Steering
from tests.engine.asking import POINT, active
from tests.engine.tiny import HIDDEN, save_tiny_sae, tiny_model

PROMPT = 6


class Echo(nn.Module):
    """Gives back what it gets: the activation at the hook point is what the test puts in."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> SAE:
    return load_sae(save_tiny_sae(tmp_path_factory.mktemp("sae")), dtype="float32")


def part(sae: SAE, described: ActiveSae, prompt: int = PROMPT) -> SaeIntervention:
    return SaeIntervention(described, Steering.prepare(sae, described.steering), prompt)


def step(applied: PreparedIntervention, rows: int = PROMPT, first: int = 0) -> AbstractContextManager[None]:
    """A forward pass of this text alone."""
    return hooks_installed([StepRows(applied, first, first + rows, 0)], rows, MergedEdits())


class Bench:
    """One hook point on its own, with some SAEs on it."""

    def __init__(self, sae: SAE, *described: ActiveSae, prompt: int = PROMPT, window: int | None = 512) -> None:
        self.module = Echo()
        hook = Hook(self.module, "output", in_place=False, width=HIDDEN)
        self.site = HookSite(POINT, hook, [part(sae, each, prompt) for each in described])
        self.applied = PreparedIntervention([self.site], [], prompt, window=window)

    def run(self, x: Tensor, first: int = 0) -> Tensor:
        with step(self.applied, len(x), first):
            new: Tensor = self.module(x[None])
        assert not self.module._forward_hooks
        self.applied.settle(first)
        return new[0]


def activations(rows: int = PROMPT, seed: int = 0) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def test_rows_without_an_edit_are_passed_on_bit_for_bit(sae: SAE) -> None:
    edit = Edit(feature=2, strength=7.0, positions=Span(tokens=(1, 4)), exclude=())
    x = activations()
    x[0, 0] = -0.0
    bench = Bench(sae, active(5, edit))
    new = bench.run(x)
    same = [0, 2, 3, 5]
    assert torch.equal(new[same].view(torch.int32), x[same].view(torch.int32))
    torch.testing.assert_close(new[[1, 4]], x[[1, 4]] + 7.0 * sae.W_dec[2], rtol=0, atol=1e-6)
    assert bench.applied.tally.edited == {1, 4}
    expected = (7.0 / x[[1, 4]].norm(dim=-1)).mean()
    assert bench.applied.tally.mean_relative_norm == pytest.approx(float(expected), rel=1e-5)


def test_a_step_that_no_edit_covers_is_not_touched(sae: SAE) -> None:
    bench = Bench(sae, active(5, Edit(feature=2, strength=7.0, positions="generated", exclude=())))
    x = activations()
    assert torch.equal(bench.run(x), x)
    assert not bench.applied.tally.edited


def test_two_saes_at_one_hook_point_both_read_the_unedited_activation(sae: SAE) -> None:
    first, second = (
        Edit(feature=2, strength=0.0, method="set", exclude=()),
        Edit(feature=2, strength=5.0, method="set", exclude=()),
    )
    x = activations()
    a = sae.encode(x)[:, 2:3]
    new = Bench(sae, active(5, first), active(6, second)).run(x)
    torch.testing.assert_close(new, x + ((0 - a) + (5 - a)) * sae.W_dec[2])


def test_projections_of_two_saes_at_one_hook_point_act_jointly(sae: SAE, tmp_path: Path) -> None:
    """One direction taken out by both is out; others are least squares. At rows where one alone projects, it does."""
    x = activations()
    v = sae.W_dec[3] / sae.W_dec[3].norm()
    out = Edit(feature=3, strength=0.0, method="project", exclude=())
    new = Bench(sae, active(5, out), active(6, out)).run(x)
    torch.testing.assert_close(new @ v, torch.zeros(PROMPT), rtol=0, atol=1e-5)
    torch.testing.assert_close(new, Bench(sae, active(5, out)).run(x))

    other = load_sae(save_tiny_sae(tmp_path, seed=4), dtype="float32")
    first = (
        Edit(feature=2, strength=3.0, method="set_projection", exclude=()),
        Edit(feature=7, strength=0.5, exclude=()),
    )
    second = (
        Edit(feature=5, strength=0.0, method="project", positions=Span(from_=2), exclude=()),
        Edit(feature=6, strength=2.0, method="project", positions=Span(from_=4), exclude=()),
    )
    bench = Bench(sae, active(5, *first))
    bench.site.parts.append(part(other, active(6, *second)))
    new = bench.run(x)
    rows = torch.stack([sae.W_dec[2], other.W_dec[5], other.W_dec[6]]).double()
    for at, count in enumerate((1, 1, 2, 2, 3, 3)):
        V = rows[:count] / rows[:count].norm(dim=1, keepdim=True)
        along = V @ x[at].double()
        missing = (torch.tensor([3.0, 0.0, 2 * float(along[-1])], dtype=torch.float64)[:count]) - along
        wanted = x[at].double() + torch.linalg.pinv(V) @ missing + 0.5 * sae.W_dec[7].double()
        torch.testing.assert_close(new[at].double(), wanted, rtol=1e-4, atol=1e-4)
    assert bench.applied.tally.edited == set(range(PROMPT))


@pytest.mark.parametrize("second", [True, False])
def test_damaged_directions_are_their_saes_fault(sae: SAE, *, second: bool) -> None:
    """Alone, where two of its own act jointly, and beside a sound SAE that projects too."""
    broken = SAE(sae.spec, sae.recipe, {**sae.weights, "W_dec": torch.full_like(sae.W_dec, torch.nan)})
    edits = (
        Edit(feature=2, strength=0.0, method="project", exclude=()),
        Edit(feature=3, strength=0.0, method="project", exclude=()),
    )
    bench = Bench(sae, *([active(5, *edits)] if second else []))
    bench.site.parts.append(part(broken, active(6, *edits)))
    with pytest.raises(HookFault) as caught:
        bench.run(activations())
    assert caught.value.attach_position == 6


def test_two_saes_project_jointly_for_one_text_beside_another(sae: SAE) -> None:
    """Both texts are joined at the first SAE; one of them is at the second one too."""
    out = Edit(feature=3, strength=0.0, method="project", exclude=())
    later = Edit(feature=4, strength=0.0, method="project", positions="generated", exclude=())
    x = activations()
    alone = [
        Bench(sae, active(5, Edit(feature=1, strength=2.0, exclude=()), out)),
        Bench(sae, active(5, out, later), active(6, out)),
    ]
    wanted = torch.cat([bench.run(x) for bench in alone])
    benches = [
        Bench(sae, active(5, Edit(feature=1, strength=2.0, exclude=()), out)),
        Bench(sae, active(5, out, later), active(6, out)),
    ]
    hook = benches[0].site.hook
    benches[1].site.hook = hook
    places = [StepRows(bench.applied, 0, PROMPT, n * PROMPT) for n, bench in enumerate(benches)]
    with hooks_installed(places, 2 * PROMPT, MergedEdits()):
        new: Tensor = hook.module(torch.cat([x, x])[None])[0]
    for bench in benches:
        bench.applied.settle(0)
        assert bench.applied.tally.edited == set(range(PROMPT))
    torch.testing.assert_close(new, wanted)


def test_reconstruct_beside_steering(sae: SAE) -> None:
    x = activations()
    edit = Edit(feature=3, strength=2.0, exclude=())
    new = Bench(sae, active(5, edit), active(6, mode="reconstruct")).run(x)
    wanted = sae(x)
    wanted[0] = x[0]  # the sink passes the reconstruction, not the edit that did not exclude it
    torch.testing.assert_close(new, wanted + 2.0 * sae.W_dec[3])


def test_reconstruct_passes_what_its_edits_leave_out(sae: SAE) -> None:
    """Sinks too, unless the edits say what to leave out and do not name them."""
    x = activations()
    x[4] *= 100
    ids, turns = (8, 9, 256, 9, 9, 9), (MessageSpan(role="user", first=0, stop=6, content=(1, 5)),)
    wanted: dict[tuple[Exclusion, ...], set[int]] = {
        (): {0, 4},
        ("sink",): {0, 4},
        ("special",): {2},
        ("template",): {0, 5},
        ("special", "sink"): {0, 2, 4},
        ("special", "template", "sink"): {0, 2, 4, 5},
    }
    for exclude, passed in wanted.items():
        described = active(5, Edit(feature=2, strength=1.0, exclude=exclude), Edit(feature=3, strength=1.0, exclude=()))
        described = replace(described, mode="reconstruct")
        bench = Bench(sae)
        marks = TokenKinds(ids, frozenset({256}), turns)
        bench.site.parts.append(
            SaeIntervention(described, Steering.prepare(sae, described.steering), PROMPT, turns, marks)
        )
        new = bench.run(x)
        assert bench.applied.tally.excluded == passed, exclude
        assert bench.applied.tally.edited == set(range(PROMPT)) - passed
        assert torch.equal(new[sorted(passed)], x[sorted(passed)])
        rest = sorted(bench.applied.tally.edited)
        torch.testing.assert_close(new[rest], (sae(x) + sae.W_dec[2] + sae.W_dec[3])[rest])


def test_reconstructions_of_two_texts_pass_what_each_leaves_out(sae: SAE) -> None:
    x = activations()
    benches = []
    hook = Bench(sae).site.hook
    for exclude in (("special",), ("sink",)):
        described = replace(active(5, Edit(feature=2, strength=1.0, exclude=exclude)), mode="reconstruct")
        bench = Bench(sae)
        marks = TokenKinds((256, 9, 256, 9, 9, 9), frozenset({256}), ())
        bench.site.parts.append(
            SaeIntervention(described, Steering.prepare(sae, described.steering), PROMPT, (), marks)
        )
        bench.site.hook = hook
        benches.append(bench)
    with hooks_installed(
        [StepRows(each.applied, 0, PROMPT, n * PROMPT) for n, each in enumerate(benches)], 2 * PROMPT, MergedEdits()
    ):
        hook.module(torch.cat([x, x])[None])
    for bench, passed in zip(benches, ({0, 2}, {0}), strict=True):
        bench.applied.settle(0)
        assert bench.applied.tally.excluded == passed


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


def test_half_precision_is_rounded_once(sae: SAE) -> None:
    x = activations().to(torch.bfloat16)
    new = Bench(sae, active(5, Edit(feature=2, strength=0.37, exclude=()))).run(x)
    assert torch.equal(new, (x.float() + 0.37 * sae.W_dec[2]).to(torch.bfloat16))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_result_that_is_not_finite_is_the_saes_fault(sae: SAE, bad: float) -> None:
    broken = SAE(sae.spec, sae.recipe, {**sae.weights, "W_dec": torch.full_like(sae.W_dec, bad)})
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=())))
    bench.site.parts.append(part(broken, active(6, Edit(feature=2, strength=1.0, exclude=()))))
    with pytest.raises(HookFault) as caught:
        bench.run(activations())
    assert caught.value.attach_position == 6
    assert not bench.applied.tally.edited


def test_an_overflow_that_the_edits_lead_to_is_no_saes_fault(sae: SAE) -> None:
    """Of the model's type by a strength; of the SAE's by a factor, beside a text whose edit is fine."""
    bench = Bench(sae, active(5, Edit(feature=2, strength=1e6, exclude=())))
    with pytest.raises(HookFault, match="the edits at") as caught:
        bench.run(activations().half())
    assert (caught.value.attach_position, caught.value.error.code) == (None, "sae_unsupported")
    on = int(sae.encode(50 * activations()).amax(dim=0).argmax())
    scaled = active(5, Edit(feature=on, strength=6e4, method="scale", exclude=()))
    for mode in ("steer", "reconstruct"):
        bench = Bench(sae.to(dtype=torch.float16), replace(scaled, mode=mode))
        with pytest.raises(HookFault, match="the edits at") as caught:
            bench.run(50 * activations())
        assert caught.value.attach_position is None


@pytest.mark.parametrize("mode", ["steer", "reconstruct"])
def test_an_sae_that_overflows_without_the_edits_is_at_fault(sae: SAE, mode: Mode) -> None:
    """The model's activations are beyond the SAE's type; those that a lower edit made so are not its fault."""
    edit = active(5, Edit(feature=2, strength=0.5, method="scale", exclude=()), mode=mode)
    for behind_others, at_fault in ((False, 5), (True, None)):
        bench = Bench(sae.to(dtype=torch.float16), edit)
        bench.site.behind_others = behind_others
        with pytest.raises(HookFault) as caught:
            bench.run(1e6 * activations())
        assert caught.value.attach_position == at_fault


def test_what_a_text_writes_below_reaches_what_it_reads_above(sae: SAE) -> None:
    model = tiny_model("llama")
    edit = Edit(feature=2, strength=1.0, exclude=())
    low, high = HookPoint("resid_post", 0), HookPoint("resid_post", 2)
    parts = [part(sae, active(at, edit, point=point)) for at, point in ((5, high), (6, low))]
    applied = PreparedIntervention.of(parts, Architecture(model, model.config), PROMPT)
    assert {site.point: site.behind_others for site in applied.sites} == {low: False, high: True}


def test_an_activation_that_is_not_finite_is_nobodys_fault(sae: SAE) -> None:
    x = activations()
    x[2] = torch.nan
    with pytest.raises(HookFault, match="the model's activation") as caught:
        Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=()))).run(x)
    assert caught.value.attach_position is None


@pytest.mark.parametrize(
    ("result", "code", "at_fault"),
    [
        (lambda: _raise(RuntimeError("boom at https://secret")), "internal", 5),
        (lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")), "out_of_memory", None),
        (lambda: (torch.zeros(2, HIDDEN), torch.ones(1, PROMPT, dtype=torch.bool)), "internal", 5),
        (lambda: (None, None), "internal", 5),
    ],
)
def test_what_fails_inside_the_hook_passes_the_activation(
    sae: SAE, monkeypatch: pytest.MonkeyPatch, result: Callable[[], object], code: str, at_fault: int | None
) -> None:
    monkeypatch.setattr(Steering, "difference", lambda *_: result())
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=())))
    x = activations()
    with step(bench.applied):
        assert torch.equal(bench.module(x[None])[0], x)
    with pytest.raises(HookFault) as caught:
        bench.applied.settle(0)
    assert (caught.value.error.code, caught.value.attach_position) == (code, at_fault)
    assert "secret" not in caught.value.error.detail
    assert not bench.applied.tally.edited


def _raise(error: Exception) -> None:
    raise error


def test_a_hook_point_that_is_not_run_is_an_error(sae: SAE) -> None:
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=())))
    with step(bench.applied):
        pass
    with pytest.raises(HookFault, match="0 times") as caught:
        bench.applied.settle(0)
    assert caught.value.attach_position is None, "it was asked for nothing"
    with step(bench.applied):
        bench.module(activations()[None])
        bench.module(activations()[None])
    with pytest.raises(HookFault, match="2 times"):
        bench.applied.settle(0)


def test_an_activation_of_another_shape_is_an_error(sae: SAE) -> None:
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=())))
    with step(bench.applied):
        bench.module(torch.zeros(1, PROMPT + 1, HIDDEN))
    with pytest.raises(HookFault, match="not 6 × 32") as caught:
        bench.applied.settle(0)
    assert caught.value.attach_position is None, "no SAE has computed anything"


def test_an_sae_that_was_not_computed_yet_is_not_to_blame(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails before the first SAE is nobody's; what fails in the second is the second's."""
    edit = Edit(feature=2, strength=1.0, exclude=("sink",))
    for failing, at_fault in (("_sinks", None), ("_alone", 6)):
        bench = Bench(sae, active(5, edit), active(6, edit))
        calls: list[int] = []

        def fail(*_: object, failing: str = failing, calls: list[int] = calls) -> None:
            calls.append(1)
            if failing == "_sinks" or len(calls) > 1:
                raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(f"sae_actor.engine.interventions.step_hook.{failing}", fail)
            with step(bench.applied):
                bench.module(activations()[None])
        with pytest.raises(HookFault) as caught:
            bench.applied.settle(0)
        assert caught.value.attach_position == at_fault


def test_an_activation_that_is_not_finite_where_it_is_only_measured(sae: SAE) -> None:
    """It ends the text whose prompt it is, and the one beside it goes on, in the same step."""
    later = Bench(sae, active(5, Edit(feature=1, strength=1.0, positions="generated", exclude=("sink",))))
    beside_it = Bench(sae, active(5, Edit(feature=1, strength=1.0, exclude=())))
    beside_it.site.hook = later.site.hook
    x = activations(2 * PROMPT)
    x[2] = torch.nan
    places = [StepRows(later.applied, 0, PROMPT, 0), StepRows(beside_it.applied, 0, PROMPT, PROMPT)]
    with hooks_installed(places, 2 * PROMPT, MergedEdits()):
        later.module(x[None])
    with pytest.raises(HookFault, match="the model's activation") as caught:
        later.applied.settle(0)
    assert caught.value.attach_position is None
    beside_it.applied.settle(0)
    assert beside_it.applied.tally.edited == set(range(PROMPT))


def test_a_forward_pass_that_raises_leaves_no_hook(sae: SAE) -> None:
    bench = Bench(sae, active(5, Edit(feature=2, strength=1.0, exclude=())))
    with pytest.raises(KeyboardInterrupt), step(bench.applied):
        raise KeyboardInterrupt
    assert not bench.module._forward_hooks


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("mode", ["steer", "reconstruct"])
def test_a_transcoder_reads_here_and_writes_there(tmp_path: Path, model_type: str, mode: str) -> None:
    """Read at mlp_in.1, where another SAE writes; write at mlp_out.1."""
    model = tiny_model(model_type)
    architecture = Architecture(model, model.config)
    sae = load_sae(save_tiny_sae(tmp_path), dtype="float32")
    read_at, write_at = HookPoint("mlp_in", 1), HookPoint("mlp_out", 1)
    edit = Edit(feature=2, strength=3.0, method="set", exclude=())
    steering: tuple[Edit, ...] = () if mode == "reconstruct" else (edit,)
    transcoder = active(5, *steering, point=read_at, out=write_at, mode=mode)  # type: ignore[arg-type]  # mypy sees str
    other = active(6, Edit(feature=4, strength=2.0, exclude=()), point=read_at)
    ids = torch.tensor([[5, 77, 200, 31, 8, 8]])
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda x: seen.__setitem__(name, x.reshape(-1, HIDDEN).clone())

    applied = PreparedIntervention.of([part(sae, transcoder), part(sae, other)], architecture, PROMPT)
    before = [architecture.hook(read_at).install(keep("read")), architecture.hook(write_at).install(keep("arrives"))]
    with torch.inference_mode(), step(applied):
        behind = [architecture.hook(read_at).install(keep("edited")), architecture.hook(write_at).install(keep("new"))]
        model(ids)
    applied.settle(0)
    for handle in (*before, *behind):
        handle.remove()
    torch.testing.assert_close(seen["edited"], seen["read"] + 2.0 * sae.W_dec[4])
    if mode == "steer":
        a = sae.encode(seen["read"])[:, 2:3]
        torch.testing.assert_close(seen["new"], seen["arrives"] + (3.0 - a) * sae.W_dec[2])
    else:
        wanted = sae(seen["read"])
        sinks = [n for n in applied.tally.excluded if n not in applied.tally.edited] or [0]
        rest = [n for n in range(PROMPT) if n not in sinks and n != 0]
        torch.testing.assert_close(seen["new"][rest], wanted[rest])
        assert torch.equal(seen["new"][0], seen["arrives"][0])
