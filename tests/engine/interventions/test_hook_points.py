"""Every hook point of every family: it reads what transformers computes, and what is written there is used."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from sae_actor.domain.refs import HookKind, HookPoint
from sae_actor.engine.interventions.hook_points import Architecture, Hook
from sae_actor.errors import LayerOutOfRangeError, ModelLoadError, SAEIncompatibleError
from sae_actor.models.families import FAMILIES
from tests.engine.blocks import CHAINS, LACKS, MORE_IS_ADDED, VARIANTS, Chains, block_of, chain
from tests.engine.tiny import CONFIGS, HIDDEN, LAYERS, tiny_model

IDS = torch.tensor([[5, 77, 200, 31, 8, 8, 119]])
LAYER = 1
KINDS: tuple[HookKind, ...] = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_act", "mlp_out",
)  # fmt: skip

LEADS: tuple[tuple[HookKind, HookKind], ...] = (("attn_z", "attn_out"), ("mlp_in", "mlp_out"), ("mlp_act", "mlp_out"))


class Built(NamedTuple):
    variant: str
    model: Any
    architecture: Architecture

    def kinds(self, layer: int = LAYER) -> list[HookKind]:
        return [kind for kind in KINDS if layer not in LACKS.get(self.variant, {}).get(kind, ())]

    def leads(self, at: dict[HookKind, Tensor], first: HookKind, last: HookKind) -> tuple[Tensor, Tensor] | None:
        """What the modules between two hook points make of the first, and what was read at the last; None where there
        is not both."""
        if first not in at or last not in at:
            return None
        chains = CHAINS.get(self.variant.partition("-")[0], Chains())
        paths = {"attn_z": chains.attention, "mlp_in": chains.mlp, "mlp_act": chains.act}[first]
        with torch.inference_mode():
            return chain(block_of(self.model, self.variant, LAYER), paths)(at[first]), at[last]

    def run(self, write: dict[HookPoint, Tensor] | None = None) -> tuple[dict[HookPoint, Tensor], tuple[Tensor, ...]]:
        """Every activation of layers 1 and 2 ([7, width]) with `write` added, and transformers' hidden states."""
        seen: dict[HookPoint, Tensor] = {}
        handles = []
        for layer in (LAYER, LAYER + 1):
            for kind in self.kinds(layer):
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
    widths = built.architecture.layer_widths
    for layer in range(LAYERS):
        assert {kind for kind, each in widths.items() if each[layer]} == set(built.kinds(layer))
    assert set(built.architecture.without) == set(LACKS.get(built.variant, ()))
    assert built.architecture.num_layers == LAYERS
    assert built.architecture.hidden_size == HIDDEN
    for point, x in seen.items():
        assert x.shape == (len(IDS[0]), widths[point.kind][point.layer]), point
        assert built.architecture.hook(point).width == x.shape[1]


def test_the_residual_stream_is_that_of_hidden_states(built: Built) -> None:
    if "resid_post" not in built.kinds():
        pytest.skip("this family has no single residual stream")
    seen, hidden_states = built.run()
    assert torch.equal(seen[HookPoint("resid_pre", LAYER)], hidden_states[LAYER][0])
    assert torch.equal(seen[HookPoint("resid_post", LAYER)], hidden_states[LAYER + 1][0])
    # The last of the hidden states is behind the final norm; the block's own output is not.
    last = seen[HookPoint("resid_post", LAYERS - 1)]
    assert not torch.allclose(last, hidden_states[-1][0])


def test_the_parts_add_up(built: Built) -> None:
    seen, _ = built.run()
    at = {point.kind: x for point, x in seen.items() if point.layer == LAYER}
    if {"resid_pre", "attn_out", "resid_mid"} <= set(at):
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"])
    if {"resid_pre", "attn_out", "mlp_out"} <= set(at) and not built.variant.startswith(MORE_IS_ADDED):
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])


@pytest.mark.parametrize(("first", "last"), LEADS)
def test_the_modules_between_two_hook_points_lead_from_one_to_the_other(
    built: Built, first: HookKind, last: HookKind
) -> None:
    seen, _ = built.run()
    both = built.leads({point.kind: x for point, x in seen.items() if point.layer == LAYER}, first, last)
    if both is None:
        pytest.skip("this family does not have both at that layer")
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_the_rest_of_the_model_reads(built: Built, kind: HookKind) -> None:
    if kind not in built.kinds():
        pytest.skip("this family has no such hook point at that layer")
    point = HookPoint(kind, LAYER)
    torch.manual_seed(1)
    difference = torch.randn(built.architecture.hook(point).width)
    bare, bare_states = built.run()
    seen, states = built.run({point: difference})
    torch.testing.assert_close(seen[point], bare[point] + difference)
    at = {each.kind: x for each, x in seen.items() if each.layer == LAYER}
    for first, last in LEADS:
        # What was written into the inside of the MLP is not in what the whole MLP makes.
        if (first, kind) != ("mlp_in", "mlp_act") and (both := built.leads(at, first, last)) is not None:
            torch.testing.assert_close(both[0], both[1] - (difference if kind == last else 0))
    if {"resid_pre", "attn_out", "mlp_out"} <= set(at) and not built.variant.startswith(MORE_IS_ADDED):
        whole = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
        torch.testing.assert_close(whole + (difference if kind in ("resid_mid", "resid_post") else 0), at["resid_post"])
    if "resid_post" in at:
        torch.testing.assert_close(seen[HookPoint("resid_pre", LAYER + 1)], at["resid_post"])
    assert not torch.allclose(states[-1], bare_states[-1])


def test_removed_hooks_leave_nothing(built: Built) -> None:
    def hooks() -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in built.model.modules())

    before = built.run()[1]
    own = hooks()  # transformers keeps those that collect the hidden states
    built.run({HookPoint("mlp_out" if "mlp_out" in built.kinds() else "mlp_in", LAYER): torch.ones(HIDDEN)})
    after = built.run()[1]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert hooks() == own


def test_refusals(built: Built) -> None:
    with pytest.raises(LayerOutOfRangeError):
        built.architecture.hook(HookPoint("mlp_in" if "mlp_in" in built.kinds() else "resid_post", LAYERS))
    for kind, layers in LACKS.get(built.variant, {}).items():
        reason = re.escape(built.architecture.without[kind])
        with pytest.raises(SAEIncompatibleError, match=f"no hook point {kind} .{reason}"):
            built.architecture.hook(HookPoint(kind, layers[0]))


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


class FusedMatrix(nn.Module):
    """Quantised, as kernels want it: packed, and without a word of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(6, 4, dtype=torch.int32))


@pytest.mark.parametrize("how", ["packed", "fused"])
def test_a_matrix_that_does_not_show_its_width(how: str) -> None:
    """In a quantised model it costs the hook points in front of it; any other model with it is built otherwise."""
    llama: Any = tiny_model("llama")
    mlp = llama.model.layers[1].mlp
    if how == "packed":
        mlp.down_proj = FusedMatrix()
    else:
        del mlp.down_proj
    with pytest.raises(ModelLoadError, match="do not match the type"):
        Architecture(llama, llama.config)
    llama.config.quantization_config = {"quant_method": "awq"}
    architecture = Architecture(llama, llama.config)
    assert architecture.layer_widths["mlp_act"] == (48, 0, 48)
    assert "attn_z" not in architecture.without
    assert "fused" in architecture.without["mlp_act"]
    with pytest.raises(SAEIncompatibleError, match=r"layer 1 has no hook point mlp_act \(the matrix that"):
        architecture.hook(HookPoint("mlp_act", 1))
    assert architecture.hook(HookPoint("mlp_act", 0)).width == 48


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


def _opt_350m() -> tuple[nn.Module, Any]:
    model: Any = tiny_model("opt", do_layer_norm_before=False)
    return model, model.config
