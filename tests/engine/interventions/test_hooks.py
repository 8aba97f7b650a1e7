"""An intervention on one forward pass: what is written, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from sae_actor.domain.chats import MessageSpan
from sae_actor.domain.refs import Edit, Exclusion, HookPoint, Span
from sae_actor.engine.interventions.hook_points import Architecture
from sae_actor.engine.interventions.hook_site import MergedEdits
from sae_actor.engine.interventions.hooks import PreparedIntervention, StepRows, hooks_installed
from sae_actor.engine.interventions.positions import TokenKinds
from sae_actor.engine.interventions.sae_intervention import SaeIntervention
from sae_actor.sae import SAE, load_sae
from sae_actor.sae.steering import Steering
from tests.engine.asking import active
from tests.engine.interventions.bench import PROMPT, Bench, activations, part, step
from tests.engine.tiny import HIDDEN, save_tiny_sae, tiny_model


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


def test_half_precision_is_rounded_once(sae: SAE) -> None:
    x = activations().to(torch.bfloat16)
    new = Bench(sae, active(5, Edit(feature=2, strength=0.37, exclude=()))).run(x)
    assert torch.equal(new, (x.float() + 0.37 * sae.W_dec[2]).to(torch.bfloat16))


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

    applied = PreparedIntervention([part(sae, transcoder), part(sae, other)], architecture, PROMPT)
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


def test_what_is_read_stays_what_arrived_though_the_block_adds_to_the_same_tensor(tmp_path: Path) -> None:
    """Falcon's blocks add attention's output to that of the MLP in place."""
    model = tiny_model("falcon")
    architecture = Architecture(model, model.config)
    sae = load_sae(save_tiny_sae(tmp_path), dtype="float32")
    read_at, write_at = HookPoint("mlp_out", 1), HookPoint("resid_post", 1)
    edit = Edit(feature=2, strength=3.0, method="set", exclude=())
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda x: seen.__setitem__(name, x.reshape(-1, HIDDEN).clone())

    applied = PreparedIntervention([part(sae, active(5, edit, point=read_at, out=write_at))], architecture, PROMPT)
    before = [architecture.hook(read_at).install(keep("read")), architecture.hook(write_at).install(keep("arrives"))]
    with torch.inference_mode(), step(applied):
        behind = architecture.hook(write_at).install(keep("new"))
        model(torch.tensor([[5, 77, 200, 31, 8, 8]]))
    for handle in (*before, behind):
        handle.remove()
    a = sae.encode(seen["read"])[:, 2:3]
    torch.testing.assert_close(seen["new"], seen["arrives"] + (3.0 - a) * sae.W_dec[2])
