"""Hook points on the near side of a norm: what is read there, what is written, and what the model comes to first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import Edit, HookKind, HookPoint, Span
from sae_actor.engine.interventions.hook_points import Architecture
from sae_actor.engine.interventions.hook_site import MergedEdits
from sae_actor.engine.interventions.hooks import PreparedIntervention, StepRows, hooks_installed
from sae_actor.engine.interventions.sae_intervention import SaeIntervention
from sae_actor.errors import SAEIncompatibleError
from sae_actor.models.families import FAMILIES
from sae_actor.sae import SAE, load_sae
from sae_actor.sae.steering import Steering
from tests.engine.asking import active
from tests.engine.blocks import MORE_IS_ADDED, block_of
from tests.engine.tiny import CONFIGS, HIDDEN, save_tiny_sae, tiny_model

IDS = torch.tensor([[5, 77, 200, 31, 8, 8]])
PROMPT = IDS.shape[1]
LAYER = 1
GAIN, PLAIN, NORM = (HookPoint("mlp_in", LAYER, before) for before in ("gain", None, "norm"))
SIDED = [(model_type, kind) for model_type in CONFIGS for kind in FAMILIES[model_type].norms]


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> SAE:
    return load_sae(save_tiny_sae(tmp_path_factory.mktemp("sae")), dtype="float32")


def run(
    architecture: Architecture, model: Any, *parts: SaeIntervention, see: tuple[HookPoint, ...] = ()
) -> dict[HookPoint, Any]:
    """What arrives at some hook points behind all edits there, and each text's intervention settled."""
    found: dict[HookPoint, Tensor] = {}
    applied = PreparedIntervention(parts, architecture, PROMPT)
    with torch.inference_mode(), hooks_installed([StepRows(applied, 0, PROMPT, 0)], PROMPT, MergedEdits()):
        handles = []
        for point in see:
            hook = architecture.hook(point)

            def keep(x: Tensor, point: HookPoint = point) -> None:
                found[point] = x.reshape(PROMPT, -1).clone()

            handles.append(hook.install(keep))
        model(IDS)
    for handle in handles:
        handle.remove()
    applied.settle(0)
    return found


def part(sae: SAE, at: int, point: HookPoint, *edits: Edit) -> SaeIntervention:
    return SaeIntervention(active(at, *edits, point=point), Steering.prepare(sae, edits), PROMPT)


@pytest.mark.parametrize(("model_type", "kind"), SIDED)
def test_before_the_gain_is_what_the_norm_divides_alone(model_type: str, kind: HookKind) -> None:
    """Written out: the stream over its root mean square, its mean taken away first by a LayerNorm."""
    model = tiny_model(model_type)
    architecture = Architecture(model, model.config)
    family = FAMILIES[model_type].of(model.config)
    norm: Any = block_of(model, model_type, LAYER).get_submodule(family.norms[kind])
    got: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: got.append(args[0].reshape(PROMPT, -1).clone()))
    point = HookPoint(kind, LAYER, "gain")
    hook = architecture.hook(point)
    found = run(architecture, model, see=(point,))[point]
    x = got[0].double()
    x = x - x.mean(-1, keepdim=True) if family.layer_norm else x
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-5))  # OLMo's has it in its forward pass
    wanted = x / (x.pow(2).mean(-1, keepdim=True) + float(eps)).sqrt()
    torch.testing.assert_close(hook.seen(found).double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.double(), wanted, atol=1e-2) == (hook.gain is None)
    assert (hook.gain is None) == (model_type == "olmo"), "the one whose norms have no gain"


@pytest.mark.parametrize(("model_type", "kind"), SIDED)
def test_before_the_norm_is_what_it_gets(model_type: str, kind: HookKind, sae: SAE) -> None:
    """An edit there reaches the norm alone: the stream beside it is as it was."""
    model = tiny_model(model_type)
    architecture = Architecture(model, model.config)
    family = FAMILIES[model_type].of(model.config)
    if family.shared_norm:
        pytest.skip("attention reads what this norm gives too")
    norm: Any = block_of(model, model_type, LAYER).get_submodule(family.norms[kind])
    point, after = HookPoint(kind, LAYER, "norm"), HookPoint(kind, LAYER)
    bare = run(architecture, model, see=(point, after))
    edited = run(architecture, model, part(sae, 5, point, Edit(2, 3.0, exclude=())), see=(point, after))
    torch.testing.assert_close(edited[point], bare[point] + 3.0 * sae.W_dec[2])
    with torch.inference_mode():
        torch.testing.assert_close(edited[after], norm(edited[point][None])[0])
    if kind == "mlp_in" and model_type not in MORE_IS_ADDED and not family.without:
        ends = (HookPoint("resid_pre", LAYER), HookPoint("attn_out", LAYER), HookPoint("mlp_out", LAYER))
        seen = run(
            architecture,
            model,
            part(sae, 5, point, Edit(2, 3.0, exclude=())),
            see=(*ends, HookPoint("resid_post", LAYER)),
        )
        torch.testing.assert_close(sum(seen[each] for each in ends), seen[HookPoint("resid_post", LAYER)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_an_edit_is_scaled_back_and_other_rows_stay_bit_for_bit(model_type: str, dtype: torch.dtype, sae: SAE) -> None:
    model: Any = tiny_model(model_type).to(dtype)
    architecture = Architecture(model, model.config)
    edit = Edit(2, 5.0, "set", positions=Span(tokens=(1, 4)))
    bare = run(architecture, model, see=(PLAIN,))[PLAIN]
    new = run(architecture, model, part(sae, 5, GAIN, edit), see=(PLAIN,))[PLAIN]
    same = [0, 2, 3, 5]
    assert torch.equal(new[same].view(torch.int8), bare[same].view(torch.int8))
    gain = architecture.hook(GAIN).gain
    assert gain is not None
    inside = gain.off(bare[[1, 4]])
    delta = (5.0 - sae.encode(inside)[:, 2:3]) * sae.W_dec[2]
    wanted = (bare[[1, 4]].float() + delta * gain.gain).to(dtype)
    torch.testing.assert_close(new[[1, 4]], wanted)


def test_what_comes_before_the_gain_is_seen_after_it(sae: SAE) -> None:
    """Two SAEs at one module, in either order: the one after the gain reads what the other has written."""
    model = tiny_model("llama")
    architecture = Architecture(model, model.config)
    first, second = Edit(2, 3.0, exclude=()), Edit(4, 0.0, "set", exclude=())
    bare = run(architecture, model, see=(PLAIN,))[PLAIN]
    gain = architecture.hook(GAIN).gain
    assert gain is not None
    moved = bare + 3.0 * sae.W_dec[2] * gain.gain
    wanted = moved - sae.encode(moved)[:, 4:5] * sae.W_dec[4]
    for parts in (
        (part(sae, 5, GAIN, first), part(sae, 6, PLAIN, second)),
        (part(sae, 6, PLAIN, second), part(sae, 5, GAIN, first)),
    ):
        torch.testing.assert_close(run(architecture, model, *parts, see=(PLAIN,))[PLAIN], wanted)


def test_the_stream_comes_before_its_way_to_the_mlp(sae: SAE) -> None:
    """`resid_mid` is written in the tensor that the norm gets; an edit before the norm comes on top of that."""
    model = tiny_model("llama")
    architecture = Architecture(model, model.config)
    middle = HookPoint("resid_mid", LAYER)
    bare = run(architecture, model, see=(NORM,))[NORM]
    parts = (part(sae, 5, NORM, Edit(2, 3.0, exclude=())), part(sae, 6, middle, Edit(4, 2.0, exclude=())))
    new = run(architecture, model, *parts, see=(NORM,))[NORM]
    torch.testing.assert_close(new, bare + 3.0 * sae.W_dec[2] + 2.0 * sae.W_dec[4])


def test_a_gain_of_zero_cannot_be_taken_off() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[LAYER].post_attention_layernorm.weight[3] = 0.0
    architecture = Architecture(model, model.config)
    with pytest.raises(SAEIncompatibleError, match="gain is 0 at 1"):
        architecture.hook(GAIN)
    assert architecture.hook(HookPoint("mlp_in", LAYER + 1, "gain")).width == HIDDEN


@pytest.mark.parametrize(
    ("model_type", "point"), [("llama", HookPoint("mlp_out", 1, "norm")), ("phi", HookPoint("mlp_in", 1, "norm"))]
)
def test_sides_that_a_family_lacks(model_type: str, point: HookPoint) -> None:
    """phi has one norm for attention and MLP: what it gets cannot be changed for the MLP alone."""
    model = tiny_model(model_type)
    with pytest.raises(SAEIncompatibleError, match="before its norm"):
        Architecture(model, model.config).hook(point)
