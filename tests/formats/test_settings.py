"""Every key of every family's settings: changed, it changes the SAE, is refused by name, or is told with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]  # has no types

from sae_actor.demo import SAE_FOLDER
from sae_actor.errors import SAEError, SAEInvalidError, SAEUnsupportedError
from sae_actor.formats import describe
from sae_actor.formats.readers import dictionary_learning, layer_file, llama_scope, sparsify
from sae_actor.formats.settings import sae_lens_keys
from sae_actor.formats.settings.keys import UNASKED, Keys
from sae_actor.sae import SAE, load_sae
from tests.formats import families, scopes
from tests.formats.dictionaries import dictionary
from tests.formats.library_keys import LIBRARY_KEYS
from tests.formats.readers.test_sae_lens import FLAT, NESTED, OLDEST, write
from tests.formats.settings_cases import CASES, Case, uneven
from tests.formats.written import D_IN, put

STRANGE = 7331
"""What is put in for a key that plays no part."""


def settings(path: Path, case: Case) -> Path:
    return (path if path.is_dir() else path.parent) / case.file


def change(file: Path, inside: tuple[str, ...], key: str, value: Any) -> None:
    as_yaml = file.suffix == ".yaml"
    text = file.read_text() if file.exists() else "{}"
    whole = yaml.safe_load(text) if as_yaml else json.loads(text)
    section = whole
    for name in inside:
        section = section.setdefault(name, {})
    section[key] = value
    file.write_text(yaml.safe_dump(whole) if as_yaml else json.dumps(whole))


def result(sae: SAE) -> tuple[Any, ...]:
    """All that a use of the SAE depends on, and what its record says beside."""
    x = torch.randn(9, sae.spec.d_in, generator=torch.Generator().manual_seed(99)) * 1.5
    return sae.spec, sae.recipe, sae.encode(x).tolist(), sae(x).tolist()


def load(path: Path) -> SAE:
    return load_sae(path, dtype="float32", allow_pickle=True)


def tried(path: Path) -> tuple[SAEError | None, SAE | None]:
    try:
        return None, load(path)
    except SAEError as refusal:
        return refusal, None


def left(sae: SAE, case: Case, key: str) -> bool:
    """The record says why the key, or something in it, plays no part."""
    return any(name == case.at + key or name.startswith(f"{case.at}{key}.") for name in sae.spec.ignored)


TRIED = [
    pytest.param(case, key, id=f"{case.name}-{key}") for case in CASES for key in case.changed if key in case.known
]


@pytest.mark.parametrize(("case", "key"), TRIED)
def test_a_changed_key_is_never_silent(case: Case, key: str, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    neutral = load(path)
    change(settings(path, case), case.inside, key, case.changed[key])
    if key in case.keys.refused:
        with pytest.raises(SAEUnsupportedError, match=key):
            load(path)
        return
    refusal, sae = tried(path)
    if refusal is not None:
        names = (*refusal.fields.values(), refusal.detail)
        contradiction = isinstance(refusal, SAEInvalidError)  # to the weights, or to another key
        assert contradiction or any(key in str(each) or str(case.changed[key]) in str(each) for each in names)
        return
    assert sae is not None
    assert left(sae, case, key) or result(sae) != result(neutral)
    assert not any("nobody here knows" in warning for warning in sae.spec.warnings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keys_that_play_no_part_are_on_record_with_the_reason(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    neutral = load(path)
    for key in case.keys.irrelevant:
        change(settings(path, case), case.inside, key, STRANGE)
    sae = load(path)
    assert {key for key in case.keys.irrelevant if not left(sae, case, key)} == set()
    assert all(len(why) > 10 for why in sae.spec.ignored.values())
    assert sae.spec.warnings == neutral.spec.warnings
    assert result(sae)[1:] == result(neutral)[1:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_key_that_is_heeded_or_refused_is_tried(case: Case) -> None:
    assert set(case.changed) >= {*case.keys.heeded, *case.keys.refused}


def test_keys_left_in_an_ordinary_sae_are_few(tmp_path: Path) -> None:
    """What the library reads in a forward pass is never among them."""
    sae = load_sae(write(tmp_path, FLAT | {"prepend_bos": True, "context_size": 128, "device": "cpu"}))
    assert set(sae.spec.ignored) == {"device", "context_size", "sae_lens_training_version"}
    assert UNASKED not in sae.spec.ignored.values()
    assert sae.spec.warnings == ()


def test_the_bundled_sae_says_nothing_odd() -> None:
    description = describe(SAE_FOLDER)
    assert description.warnings == ()
    assert description.prepend_bos is False
    assert {"dtype", "metadata.context_size", "metadata.val_l0"} <= set(description.ignored)


def test_what_nobody_knows_is_a_warning(tmp_path: Path) -> None:
    keys = {f"key_{n}": n for n in range(40)}
    (warning,) = load_sae(write(tmp_path, FLAT | {"flux": 3, "bad\x1b[31mkey": 1, **keys})).spec.warnings
    assert "nobody here knows" in warning
    assert "flux" in warning
    assert "\x1b" not in warning
    assert "and 30 more" in warning
    description = describe(tmp_path)
    assert description.warnings == (warning,)
    assert description.ignored


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_nobody_knows_is_a_warning_in_every_family(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    change(settings(path, case), case.inside, "flux_capacitor", 1)
    warnings = load_sae(path, allow_pickle=True).spec.warnings
    assert any(f"not heeded: {case.at}flux_capacitor" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("library", "keys"),
    [
        ("sae_lens", sae_lens_keys.TOP),
        ("sparsify cfg", sparsify.KEYS),
        ("sparsify run", sparsify.RUN),
        ("dictionary_learning trainer", dictionary_learning.TRAINER),
        ("dictionary_learning buffer", dictionary_learning.BUFFER),
        ("circuit-tracer", layer_file.SET),
        ("lm-saes", llama_scope.KEYS),
    ],
)
def test_every_key_that_a_library_writes_is_known(library: str, keys: Keys) -> None:
    assert set(LIBRARY_KEYS[library].split()) <= {*keys.heeded, *keys.refused, *keys.irrelevant}


def test_a_key_is_in_one_place() -> None:
    for case in CASES:
        assert len(case.known) == len(set(case.known)), case.name


@pytest.mark.parametrize("value", [True, False, None])
@pytest.mark.parametrize("nested", [True, False], ids=["v6", "flat"])
def test_prepend_bos_is_told(nested: bool, value: bool | None, tmp_path: Path) -> None:
    metadata = {**NESTED["metadata"], "prepend_bos": value}  # type: ignore[dict-item]
    path = write(tmp_path, {**NESTED, "metadata": metadata} if nested else {**FLAT, "prepend_bos": value})
    assert describe(path).prepend_bos is value
    assert load_sae(path).spec.prepend_bos is value


def test_prepend_bos_of_files_that_do_not_say(tmp_path: Path) -> None:
    assert describe(write(tmp_path / "a", OLDEST)).prepend_bos is None
    assert describe(scopes.gemma_scope_2(tmp_path / "b").path).prepend_bos is None


@pytest.mark.parametrize(
    ("which", "file"), [(scopes.llama_scope_transcoder, "hyperparams.json"), (scopes.llama_scope_r1, "config.json")]
)
def test_decoder_norms_count_before_the_threshold(which: Callable[[Path], Any], file: str, tmp_path: Path) -> None:
    """lm-saes: the mask is 1[h · ‖W_dec[i]‖ > threshold], the activation stays h; without the setting, 1[h > …]."""
    path = uneven(which)(tmp_path)
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(4)) * 2
    counted = load_sae(path, dtype="float64")
    change(path / file, (), "sparsity_include_decoder_norm", False)
    plain = load_sae(path, dtype="float64")
    h = plain.encoder.pre(plain.read(x.double())[0])
    norms = plain.W_dec.norm(dim=1)
    threshold = plain.weights["threshold"]
    torch.testing.assert_close(plain.encode(x), h * (h > threshold))
    torch.testing.assert_close(counted.encode(x), h * ((h * norms > threshold) & (h > 0)))
    assert not torch.equal(counted.encode(x), plain.encode(x))
    assert any("norm 1" in warning for warning in counted.spec.warnings)


@pytest.mark.parametrize(
    ("submodule", "kind", "layer"),
    [
        ("resid_post_layer_3", "resid_pre", 3),
        ("mlp_out_layer_3", "mlp_in", 3),
        ("model.layers.5.mlp", "mlp_in", 5),
        ("attn_out_layer_3", None, 3),
    ],
)
def test_a_buffer_that_read_the_input_of_the_submodule(
    submodule: str, kind: str | None, layer: int, tmp_path: Path
) -> None:
    case = dictionary(tmp_path, "AutoEncoder", submodule_name=submodule, layer=layer)
    path = case.path.parent.rename(tmp_path / "renamed") / case.path.name
    change(path / "config.json", ("buffer",), "io", "in")
    spec = load_sae(path, allow_pickle=True).spec
    assert (spec.hook_point and (spec.hook_point.kind, spec.hook_point.layer)) == (kind and (kind, layer))
    assert bool(spec.warnings) == (kind is None)
    change(path / "config.json", ("buffer",), "io", "in_and_out")
    with pytest.raises(SAEUnsupportedError, match="in_and_out"):
        load_sae(path, allow_pickle=True)


def test_gemma_scope_2_where_it_writes(tmp_path: Path) -> None:
    """An output that is named and not known is no reason to take the usual one."""
    case = scopes.gemma_scope_2_affine(tmp_path)
    config = {
        "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.5.somewhere",
        "type": "transcoder",
    }
    put(case.path, "config.json", config=config)
    description = describe(case.path)
    assert description.hook_point_out is None
    assert any("model.layers.5.somewhere" in warning for warning in description.warnings)
    put(case.path, "config.json", config=config | {"type": "sae"})
    with pytest.raises(SAEInvalidError):
        describe(case.path)
    put(case.path, "config.json", config={"hf_hook_point_out": "model.layers.5.output"})
    assert str(describe(case.path).hook_point_out) == "resid_post.5"


def test_stored_values_that_play_no_part_are_told(tmp_path: Path) -> None:
    ignored = load_sae(dictionary(tmp_path / "a", "AutoEncoderTopK").path, allow_pickle=True).spec.ignored
    assert {"threshold", "buffer.ctx_len"} <= set(ignored)
    assert "k" not in ignored
    ignored = load_sae(dictionary(tmp_path / "b", "MatryoshkaBatchTopKSAE").path, allow_pickle=True).spec.ignored
    assert {"k", "trainer.k", "group_sizes"} <= set(ignored)
    openai = families.openai_topk(tmp_path / "c")
    stored = torch.load(openai.path, weights_only=True)
    assert "stats_last_nonzero" in load_sae(openai.path, allow_pickle=True).spec.ignored
    torch.save(stored | {"flux": 3}, openai.path)
    assert any("flux" in warning for warning in load_sae(openai.path, allow_pickle=True).spec.warnings)
    torch.save(stored | {"activation_state_dict": {"k": 5, "postact_fn": "ReLU", "flux": 3}}, openai.path)
    with pytest.raises(SAEUnsupportedError, match="flux"):
        load_sae(openai.path, allow_pickle=True)


@pytest.mark.parametrize("which", [families.goodfire, families.deepseek_r1, families.qwen_scope])
def test_values_beside_the_tensors_of_a_pickle_are_told(which: Callable[[Path], Any], tmp_path: Path) -> None:
    case = which(tmp_path)
    file = case.path if case.path.is_file() else case.path / case.weights[0]
    torch.save(torch.load(file, weights_only=True) | {"flux": 3}, file)
    warnings = load_sae(file, allow_pickle=True, repository_id=case.repository_id).spec.warnings
    assert any("flux" in warning for warning in warnings)
