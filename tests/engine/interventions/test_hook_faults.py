"""What fails at a hook point, and who is at fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from msgspec.structs import replace

from sae_actor.domain.refs import Edit, HookPoint, Mode
from sae_actor.engine.interventions.hook_points import Architecture
from sae_actor.engine.interventions.hook_site import HookFault, MergedEdits
from sae_actor.engine.interventions.hooks import PreparedIntervention, StepRows, hooks_installed
from sae_actor.sae import SAE
from sae_actor.sae.steering import Steering
from tests.engine.asking import active
from tests.engine.interventions.bench import PROMPT, Bench, activations, part, step
from tests.engine.tiny import HIDDEN, tiny_model


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
    applied = PreparedIntervention(parts, Architecture(model, model.config), PROMPT)
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
