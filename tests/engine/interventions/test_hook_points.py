"""Every hook point of every family: it reads what transformers computes, and what is written there is used."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from sae_actor.domain.refs import HookKind, HookPoint
from sae_actor.engine.interventions.hook_points import Architecture, Hook
from sae_actor.errors import LayerOutOfRangeError, ModelLoadError, SAEIncompatibleError
from sae_actor.models.families import FAMILIES
from tests.engine.tiny import CONFIGS, HIDDEN, LAYERS, tiny_model

IDS = torch.tensor([[5, 77, 200, 31, 8, 8, 119]])
LAYER = 1
KINDS: tuple[HookKind, ...] = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_act", "mlp_out",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in CONFIGS} | {
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False})
}
POST_NORMED = ("gemma2", "gemma3_text")
PARALLEL = ("gpt_neox", "phi")
LACKS: dict[str, HookKind] = {**dict.fromkeys(PARALLEL, "resid_mid"), "gpt_oss": "mlp_act"}


class Built(NamedTuple):
    variant: str
    model: Any
    architecture: Architecture

    @property
    def kinds(self) -> list[HookKind]:
        return [kind for kind in KINDS if kind != LACKS.get(self.variant)]

    def run(self, write: dict[HookPoint, Tensor] | None = None) -> tuple[dict[HookPoint, Tensor], tuple[Tensor, ...]]:
        """Every activation of layers 1 and 2 ([7, width]) with `write` added, and transformers' hidden states."""
        seen: dict[HookPoint, Tensor] = {}
        handles = []
        for layer in (LAYER, LAYER + 1):
            for kind in self.kinds:
                point = HookPoint(kind, layer)
                difference = (write or {}).get(point)

                def edit(x: Tensor, point: HookPoint = point, difference: Tensor | None = difference) -> Tensor | None:
                    new = x if difference is None else x + difference
                    seen[point] = new.reshape(len(IDS[0]), -1).clone()
                    return None if difference is None else new

                handles.append(self.architecture.hook(point).install(edit))
        with torch.inference_mode():
            out = self.model(IDS, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        return seen, out.hidden_states


@pytest.fixture(scope="module", params=list(VARIANTS))
def built(request: pytest.FixtureRequest) -> Built:
    model_type, config = VARIANTS[request.param]
    model = tiny_model(model_type, **config)
    return Built(request.param, model, Architecture(model, model.config))


def test_all_families_are_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)


def test_the_kinds_and_their_widths(built: Built) -> None:
    seen, _ = built.run()
    assert set(built.architecture.widths) == set(built.kinds)
    assert built.architecture.num_layers == LAYERS
    assert built.architecture.hidden_size == HIDDEN
    for point, x in seen.items():
        assert x.shape == (len(IDS[0]), built.architecture.widths[point.kind]), point
        assert built.architecture.hook(point).width == x.shape[1]


def test_the_residual_stream_is_that_of_hidden_states(built: Built) -> None:
    seen, hidden_states = built.run()
    torch.testing.assert_close(seen[HookPoint("resid_pre", LAYER)], hidden_states[LAYER][0])
    torch.testing.assert_close(seen[HookPoint("resid_post", LAYER)], hidden_states[LAYER + 1][0])
    # The last of the hidden states is behind the final norm; the block's own output is not.
    last = seen[HookPoint("resid_post", LAYERS - 1)]
    assert not torch.allclose(last, hidden_states[-1][0])


def test_the_parts_add_up(built: Built) -> None:
    seen, _ = built.run()
    at = {point.kind: x for point, x in seen.items() if point.layer == LAYER}
    torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
    if "resid_mid" in at:
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"])


def test_the_modules_between_two_hook_points_lead_from_one_to_the_other(built: Built) -> None:
    seen, _ = built.run()
    at = {point.kind: x for point, x in seen.items() if point.layer == LAYER}
    attention, mlp = parts(built)
    with torch.inference_mode():
        torch.testing.assert_close(attention(at["attn_z"]), at["attn_out"])
        torch.testing.assert_close(mlp(at["mlp_in"]), at["mlp_out"])
        if "mlp_act" in at:
            torch.testing.assert_close(last_matrix(built)(at["mlp_act"]), at["mlp_out"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_the_rest_of_the_model_reads(built: Built, kind: HookKind) -> None:
    if kind not in built.kinds:
        pytest.skip("this family has no such hook point")
    point = HookPoint(kind, LAYER)
    torch.manual_seed(1)
    difference = torch.randn(built.architecture.widths[kind])
    bare, bare_states = built.run()
    seen, states = built.run({point: difference})
    torch.testing.assert_close(seen[point], bare[point] + difference)
    at = {each.kind: x for each, x in seen.items() if each.layer == LAYER}
    attention, mlp = parts(built)
    with torch.inference_mode():
        torch.testing.assert_close(attention(at["attn_z"]), at["attn_out"] - (difference if kind == "attn_out" else 0))
        torch.testing.assert_close(mlp(at["mlp_in"]) if kind != "mlp_act" else last_matrix(built)(at["mlp_act"]),
                                   at["mlp_out"] - (difference if kind == "mlp_out" else 0))  # fmt: skip
    whole = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
    late = difference if kind in ("resid_mid", "resid_post") else 0
    torch.testing.assert_close(whole + late, at["resid_post"])
    torch.testing.assert_close(seen[HookPoint("resid_pre", LAYER + 1)], at["resid_post"])
    assert not torch.allclose(states[-1], bare_states[-1])


def test_removed_hooks_leave_nothing(built: Built) -> None:
    def hooks() -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in built.model.modules())

    before = built.run()[1]
    own = hooks()  # transformers keeps those that collect the hidden states
    built.run({HookPoint("resid_post", LAYER): torch.ones(HIDDEN)})
    after = built.run()[1]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert hooks() == own


def test_refusals(built: Built) -> None:
    with pytest.raises(LayerOutOfRangeError):
        built.architecture.hook(HookPoint("resid_post", LAYERS))
    if (lacking := LACKS.get(built.variant)) is not None:
        with pytest.raises(SAEIncompatibleError, match=f"no hook point {lacking}"):
            built.architecture.hook(HookPoint(lacking, 0))


def test_unknown_model_types_are_refused_by_name() -> None:
    class Config:
        model_type = "bert"

    with pytest.raises(ModelLoadError, match=r"bert.*gemma2.*llama"):
        Architecture(nn.Linear(1, 1), Config())


def test_a_model_built_otherwise_is_refused() -> None:
    llama: Any = tiny_model("llama")
    with pytest.raises(ModelLoadError, match="do not match the type"):
        Architecture(nn.Linear(1, 1), llama.config)
    with pytest.raises(ModelLoadError, match="do_layer_norm_before"):
        Architecture(*_opt_350m())


@pytest.mark.parametrize("shape", ["tensor", "tuple", "model_output"])
def test_outputs_of_every_shape(shape: str) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Any:
            if shape == "tensor":
                return x
            return (x, "rest") if shape == "tuple" else BaseModelOutput(last_hidden_state=x, hidden_states=(x,))

    module = Module()
    handle = Hook(module, "output", in_place=False, width=2).install(lambda x: x + 1)
    x = torch.zeros(1, 1, 2)
    out = module(x)
    first = out if shape == "tensor" else out[0]
    assert torch.equal(first, x + 1)
    assert shape != "tuple" or out[1] == "rest"
    assert shape != "model_output" or torch.equal(out.hidden_states[0], x)
    handle.remove()


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_by_position_and_by_name(by_name: bool) -> None:
    class Module(nn.Module):
        def forward(self, hidden_states: Tensor, other: int = 0) -> Tensor:
            return hidden_states * other

    module = Module()
    Hook(module, "input", in_place=False, width=2).install(lambda x: x + 1)
    x = torch.ones(1, 1, 2)
    out = module(hidden_states=x, other=3) if by_name else module(x, other=3)
    assert torch.equal(out, 3 * (x + 1))
    assert torch.equal(x, torch.ones(1, 1, 2))


def parts(built: Built) -> tuple[Any, Any]:
    """attn_z → attn_out and mlp_in → mlp_out of layer 1, written out for each family."""
    model, name = built.model, built.variant.partition("-")[0]
    if name == "gpt2":
        block = model.transformer.h[LAYER]
        return block.attn.c_proj, block.mlp
    if name == "gpt_neox":
        block = model.gpt_neox.layers[LAYER]
        return block.attention.dense, block.mlp
    if name == "opt":
        block = model.model.decoder.layers[LAYER]
        return block.self_attn.out_proj, lambda x: block.fc2(block.activation_fn(block.fc1(x)))
    block = model.model.layers[LAYER]
    if name == "phi":
        return block.self_attn.dense, block.mlp
    if name in POST_NORMED:
        return (
            lambda z: block.post_attention_layernorm(block.self_attn.o_proj(z)),
            lambda x: block.post_feedforward_layernorm(block.mlp(x)),
        )
    if name == "gpt_oss":
        return block.self_attn.o_proj, lambda x: block.mlp(x[None])[0][0]
    return block.self_attn.o_proj, block.mlp


def last_matrix(built: Built) -> Any:
    """mlp_act → mlp_out of layer 1."""
    model, name = built.model, built.variant.partition("-")[0]
    if name == "gpt2":
        return model.transformer.h[LAYER].mlp.c_proj
    if name == "gpt_neox":
        return model.gpt_neox.layers[LAYER].mlp.dense_4h_to_h
    if name == "opt":
        return model.model.decoder.layers[LAYER].fc2
    block = model.model.layers[LAYER]
    if name == "phi":
        return block.mlp.fc2
    if name in POST_NORMED:
        return lambda act: block.post_feedforward_layernorm(block.mlp.down_proj(act))
    return block.mlp.down_proj


def _opt_350m() -> tuple[nn.Module, Any]:
    model: Any = tiny_model("opt", do_layer_norm_before=False)
    return model, model.config
