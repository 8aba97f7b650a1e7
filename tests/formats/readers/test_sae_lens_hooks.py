"""SAELens: where an SAE lies in its model, and what its library had done to that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sae_actor.domain.refs import HookPoint
from sae_actor.errors import SAEUnsupportedError
from sae_actor.formats import describe
from sae_actor.sae import SAE, load_sae
from tests.formats.readers.test_sae_lens import BASIC, FLAT, OLDEST, V6, equal, relu, rows, write
from tests.formats.written import Array, plain, weights


def named(hook_name: str, model: str = "Llama-3.2-1B", **meta: Any) -> dict[str, Any]:
    return V6 | {"metadata": {"sae_lens_version": "6.12.0", "model_name": model, "hook_name": hook_name, **meta}}


@pytest.mark.parametrize(
    ("config", "point"),
    [
        (named("blocks.2.ln2.hook_normalized"), HookPoint("mlp_in", 2, "gain")),
        (named("blocks.2.hook_mlp_in"), HookPoint("mlp_in", 2, "norm")),
        (named("blocks.2.mlp.hook_out", "gemma-2-2b"), HookPoint("mlp_out", 2, "norm")),
        (named("blocks.2.mlp.hook_out"), HookPoint("mlp_out", 2)),
        (named("model.layers.2.mlp", "google/gemma-3-1b-pt"), HookPoint("mlp_out", 2, "norm")),
        (named("blocks.2.hook_mlp_out", "gemma-2-2b"), HookPoint("mlp_out", 2)),
        (
            named("blocks.2.hook_mlp_out", hf_hook_name="model.layers.2.post_feedforward_layernorm"),
            HookPoint("mlp_out", 2),
        ),
        (named("blocks.2.hook_mlp_out", hf_hook_name="model.layers.2.mlp"), HookPoint("mlp_out", 2)),
        (named("blocks.2.hook_mlp_out", "gemma-2-2b", hf_hook_name="model.layers.2.mlp"), None),
        (named("blocks.2.ln1.hook_normalized"), None),
    ],
)
def test_where_the_hook_lies(config: dict[str, Any], point: HookPoint | None, tmp_path: Path) -> None:
    described = describe(write(tmp_path, config))
    assert described.hook_point == point
    assert bool(described.warnings) == (point is None)


def test_a_transcoder_whose_two_names_are_two_places(tmp_path: Path) -> None:
    """Re-saved Gemma Scope 2 transcoders: `hook_mlp_in` is the stream, the module it names is after the norm."""
    w = weights(32)
    there = {"hf_hook_name": "model.layers.2.pre_feedforward_layernorm.output"}
    config = named("blocks.2.hook_mlp_in", "google/gemma-3-1b-pt", **there)
    config |= {"architecture": "transcoder", "apply_b_dec_to_input": False}
    described = describe(write(tmp_path, config, {key: w[key] for key in BASIC}))
    assert (described.hook_point, described.hook_point_out) == (None, None)
    assert "neither counts" in described.warnings[0]


def test_a_transcoder_on_its_way_to_the_mlp_writes_where_that_ends(tmp_path: Path) -> None:
    w = weights(32)
    config = named("blocks.2.hook_mlp_in") | {"architecture": "transcoder", "apply_b_dec_to_input": False}
    described = describe(write(tmp_path, config, {key: w[key] for key in BASIC}))
    assert (described.hook_point, described.hook_point_out) == (HookPoint("resid_mid", 2), HookPoint("mlp_out", 2))


def test_what_the_library_did_to_the_model_is_kept(tmp_path: Path) -> None:
    folded = named("blocks.2.ln2.hook_normalized", "gpt2-small", model_from_pretrained_kwargs={"fold_ln": True})
    assert describe(write(tmp_path, folded)).norms_folded
    assert not describe(write(tmp_path, named("blocks.2.ln2.hook_normalized", "gpt2-small"))).norms_folded
    moved: dict[str, Any] = {"model_from_pretrained_kwargs": {"fold_value_biases": True}}
    with pytest.raises(SAEUnsupportedError, match="without the value bias"):
        describe(write(tmp_path, named("blocks.2.attn.hook_z", "gpt2-small", **moved)))
    assert describe(write(tmp_path, named("blocks.2.attn.hook_z", **moved))).hook_point == HookPoint("attn_z", 2)


@pytest.mark.parametrize(("version", "said"), [("3.0.0", True), (None, True), ("3.22.2", False), ("6.1.0", False)])
def test_heads_of_an_old_release_may_lack_the_value_bias(version: str | None, said: bool, tmp_path: Path) -> None:
    old = FLAT | {"hook_name": "blocks.1.attn.hook_z", "sae_lens_training_version": version}
    assert any("value bias" in each for each in describe(write(tmp_path, old)).warnings) == said


def test_hook_z_in_heads(tmp_path: Path) -> None:
    config = FLAT | {"hook_name": "blocks.1.attn.hook_z"}
    sae = load_sae(write(tmp_path, config))
    x, xs = rows()
    p = plain(weights(30))
    equal(sae(x.view(8, 3, 4)).flatten(1), relu(p, xs) @ p["W_dec"] + p["b_dec"])
    assert sae.spec.hook_point == HookPoint("attn_z", 1)


def test_one_head_is_no_hook_point(tmp_path: Path) -> None:
    description = describe(write(tmp_path, FLAT | {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 0}))
    assert description.hook_point is None
    assert description.trained_layer == 1
    assert description.warnings


def centred(sae: SAE, x: Tensor, xs: Array) -> None:
    p = plain(weights(30))
    mean = xs.mean(axis=1, keepdims=True)
    equal(sae.encode(x), relu(p, xs - mean))
    equal(sae(x), relu(p, xs - mean) @ p["W_dec"] + p["b_dec"] + mean)


def raw(sae: SAE, x: Tensor, xs: Array) -> None:
    equal(sae.encode(x), relu(plain(weights(30)), xs))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, centred),
        ({"hook_name": "blocks.6.mlp.hook_post"}, raw),  # not written to the stream
        ({"model_name": "gemma-2b"}, raw),  # no LayerNorm, so its weights cannot be centred
        ({"model_from_pretrained_kwargs": {"center_writing_weights": False}}, raw),
    ],
)
def test_centred_writing_weights(
    change: dict[str, Any], expected: Callable[[SAE, Tensor, Array], None], tmp_path: Path
) -> None:
    config = FLAT | {"model_from_pretrained_kwargs": {"center_writing_weights": True}} | change
    expected(load_sae(write(tmp_path, config)), *rows())


OLD_RELEASE = "GPT2-Small-SAEs-Reformatted"


@pytest.mark.parametrize(
    ("repository_id", "change", "expected", "warned"),
    [
        (f"jbloom/{OLD_RELEASE}", {}, centred, True),  # known for it; the files do not say
        (f"jbloom/{OLD_RELEASE}", {"model_from_pretrained_kwargs": {"center_writing_weights": False}}, raw, False),
        ("someone/else", {}, raw, True),
        ("someone/else", {"model_from_pretrained_kwargs": {}}, raw, False),
        ("someone/else", {"model_name": "gemma-2b"}, raw, False),
        ("someone/else", {"normalize_activations": "layer_norm"}, None, False),  # the mean is out anyway
    ],
)
def test_old_releases_that_do_not_say_whether_they_centred(
    repository_id: str,
    change: dict[str, Any],
    expected: Callable[[SAE, Tensor, Array], None] | None,
    warned: bool,
    tmp_path: Path,
) -> None:
    path = write(tmp_path, OLDEST | change)
    sae = load_sae(path, repository_id=repository_id)
    if expected is not None:
        expected(sae, *rows())
    assert any("mean" in warning for warning in sae.spec.warnings) == warned
    assert describe(path, repository_id=repository_id).warnings == sae.spec.warnings


def test_layer_in_the_place_of_a_number(tmp_path: Path) -> None:
    config = OLDEST | {"hook_point": "blocks.{layer}.hook_mlp_out", "hook_point_layer": 3}
    assert describe(write(tmp_path, config)).hook_point == HookPoint("mlp_out", 3)
