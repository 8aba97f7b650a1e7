"""Names of hooks, in every spelling in use."""

from __future__ import annotations

import pytest

from sae_actor.domain.refs import HookPoint
from sae_actor.formats.hook_names import parse_hook, parse_layer

KNOWN = {
    "blocks.12.hook_resid_pre": "resid_pre.12",
    "blocks.12.hook_resid_mid": "resid_mid.12",
    "blocks.12.hook_resid_post": "resid_post.12",
    "blocks.3.hook_attn_out": "attn_out.3",
    "blocks.3.attn.hook_z": "attn_z.3",
    "blocks.3.hook_mlp_out": "mlp_out.3",
    "blocks.3.mlp.hook_post": "mlp_act.3",
    "blocks.3.ln2.hook_normalized": "mlp_in.3 before the gain of its norm",
    "blocks.3.ln2.hook_in": "mlp_in.3 before its norm",
    "blocks.3.ln2.hook_out": "mlp_in.3",
    "blocks.3.hook_mlp_in": "mlp_in.3 before its norm",
    "blocks.3.mlp.hook_in": "mlp_in.3",
    "blocks.3.mlp.hook_out": "mlp_out.3 before its norm",
    "blocks.3.ln2_post.hook_normalized": "mlp_out.3 before the gain of its norm",
    "blocks.3.ln1_post.hook_out": "attn_out.3",
    "blocks.3.hook_in": "resid_pre.3",
    "blocks.3.hook_out": "resid_post.3",
    "blocks.3.attn.hook_out": "attn_out.3 before its norm",
    "blocks.3.attn.o.hook_in": "attn_z.3",
    "model.layers.12.output": "resid_post.12",
    "model.layers.12": "resid_post.12",
    "layers.12": "resid_post.12",
    "layers.12.mlp": "mlp_out.12 before its norm",
    "layers.12.self_attn": "attn_out.12 before its norm",
    "gpt_neox.layers.5": "resid_post.5",
    "gpt_neox.layers.5.attention": "attn_out.5",
    "transformer.h.7": "resid_post.7",
    "transformer.h.7.mlp": "mlp_out.7 before its norm",
    "transformer.h.7.ln_2": "mlp_in.7",
    "h.7.attn": "attn_out.7 before its norm",
    "model.layers.9.self_attn.o_proj.input": "attn_z.9",
    "model.layers.9.mlp.down_proj.input": "mlp_act.9",
    "model.layers.9.mlp.input": "mlp_in.9",
    "model.layers.9.input": "resid_pre.9",
    "model.language_model.layers.9.output": "resid_post.9",
    "model.layers.9.pre_feedforward_layernorm.output": "mlp_in.9",
    "model.layers.9.pre_feedforward_layernorm.input": "mlp_in.9 before its norm",
    "model.layers.9.post_feedforward_layernorm.output": "mlp_out.9",
    "model.layers.9.post_feedforward_layernorm.input": "mlp_out.9 before its norm",
    "gpt_neox.layers.5.post_attention_layernorm": "mlp_in.5",
    "resid_post_layer_3": "resid_post.3",
    "mlp_out_layer_3": "mlp_out.3 before its norm",
    "attention_out_layer_3": "attn_out.3 before its norm",
}
UNKNOWN = [
    None,
    "",
    "hook_embed",
    "embed_tokens",
    "blocks.3.attn.hook_q",
    "blocks.3.mlp.hook_pre",
    "blocks.99999.hook_resid_post",
    "blocks.4096.hook_resid_post",
    "blocks.x.hook_resid_post",
    "blocks.1.hook_resid_post\nblocks.2.hook_resid_post",
    "model.layers.3.mlp.experts.5",
    "layers.3.input_layernorm",
    "layers.3.post_attention_layernorm",
    "blocks.3.ln1.hook_normalized",
    "blocks.3.hook_attn_in",
    "blocks.3.hook_q_input",
    "blocks.3.mlp.in.hook_in",
    "nonsense_layer_3",
    "layers.-1",
]


@pytest.mark.parametrize("name", KNOWN)
def test_known_names(name: str) -> None:
    point = parse_hook(name)
    assert str(point) == KNOWN[name]
    assert point is not None
    assert parse_layer(name) == point.layer


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_give_no_hook_point(name: str | None) -> None:
    assert parse_hook(name) is None


def test_a_transcoder_reads_the_input_of_a_bare_mlp() -> None:
    assert parse_hook("layers.4.mlp", transcoder_input=True) == HookPoint("mlp_in", 4)


def test_what_is_read_alone_is_read_from_the_stream_on_its_way_to_the_mlp() -> None:
    """The numbers are those of the stream; only an edit would differ. Where nothing lies between attention and MLP,
    they are those that the block receives."""
    name = "blocks.7.hook_mlp_in"
    assert parse_hook(name, transcoder_input=True) == HookPoint("resid_mid", 7)
    assert parse_hook(name, transcoder_input=True, model="pythia-70m") == HookPoint("mlp_in", 7, "norm")


def test_folded_gains_are_nowhere_after_the_norm() -> None:
    for name in ("mlp.hook_in", "ln2.hook_out", "ln2.hook_normalized"):
        assert parse_hook(f"blocks.7.{name}", norms_folded=True) == HookPoint("mlp_in", 7, "gain")
    assert parse_hook("blocks.7.hook_mlp_out", norms_folded=True) == HookPoint("mlp_out", 7)


def test_a_module_is_hooked_where_it_is_whatever_follows_it() -> None:
    assert parse_hook("layers.4.mlp", model="google/gemma-2-2b") == HookPoint("mlp_out", 4, "norm")
    assert parse_hook("layers.4.self_attn", model="google/gemma-3-1b-it") == HookPoint("attn_out", 4, "norm")
    assert parse_hook("layers.4.self_attn.o_proj", model="google/gemma-3-1b-it") == HookPoint("attn_out", 4, "norm")
    assert parse_hook("layers.4", model="google/gemma-2-2b") == HookPoint("resid_post", 4)
    assert parse_hook("blocks.4.hook_mlp_out", model="gemma-2-2b") == HookPoint("mlp_out", 4)
    for without in ("meta-llama/Llama-3.1-8B", "google/gemma-2b", "gpt2-small", "EleutherAI/pythia-70m"):
        assert parse_hook("layers.4.mlp", model=without) == HookPoint("mlp_out", 4)
        assert parse_hook("blocks.4.attn.hook_out", model=without) == HookPoint("attn_out", 4)


@pytest.mark.parametrize(
    ("model", "point"),
    [
        ("google/gemma-2-9b", HookPoint("attn_out", 4)),
        ("google/gemma-3-270m", HookPoint("attn_out", 4)),
        ("meta-llama/Llama-3.2-1B", HookPoint("mlp_in", 4)),
        ("google/gemma-2b", HookPoint("mlp_in", 4)),
        ("org/unknown", None),
    ],
)
def test_the_norm_after_attention_is_another_in_each_family(model: str, point: HookPoint | None) -> None:
    assert parse_hook("model.layers.4.post_attention_layernorm", model=model) == point


def test_a_site_in_a_folders_name_is_ambiguous_where_a_norm_follows() -> None:
    assert parse_hook("mlp_out_layer_3", model="google/gemma-2-2b") is None
    assert parse_hook("resid_post_layer_3", model="google/gemma-2-2b") == HookPoint("resid_post", 3)


def test_a_layer_can_be_known_without_its_place() -> None:
    assert parse_layer("blocks.7.attn.hook_q") == 7
    assert parse_layer("hook_embed") is None
