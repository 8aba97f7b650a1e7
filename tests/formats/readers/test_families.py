"""Every family: recognised, described without weights, and computing what its own library computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_actor.errors import SAEError, SAEInvalidError, SAEUnsupportedError
from sae_actor.formats import FORMATS, describe, weight_files
from sae_actor.formats.pickles import convert
from sae_actor.sae import SAE, load_sae
from tests.formats.dictionaries import ENCODERS, dictionary
from tests.formats.families import FAMILIES, layer_file, qwen_scope
from tests.formats.written import D_IN, D_SAE, Written, put, weights

Family = Callable[[Path], Written]


def check(sae: SAE, case: Written) -> None:
    x = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(99)) * 1.5
    rows = x.double().numpy()
    acts = case.encode(rows)
    assert 0 < (acts != 0).mean() < 0.9
    np.testing.assert_allclose(sae.encode(x).double().numpy(), acts, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(x).double().numpy(), case.forward(rows), rtol=1e-4, atol=1e-4)
    if not sae.per_row and "W_skip" not in sae.weights:
        np.testing.assert_allclose(sae.decode(sae.encode(x)).numpy(), case.forward(rows), rtol=1e-4, atol=1e-4)
    assert (sae.spec.format, sae.spec.architecture) == (case.format, case.architecture)
    assert (sae.spec.d_in, sae.spec.d_sae, sae.spec.d_out) == (D_IN, D_SAE, case.d_out)
    assert (sae.spec.hook_point, sae.spec.hook_point_out) == (case.hook_point, case.hook_point_out)
    assert sae.spec.trained_layer == (case.hook_point and case.hook_point.layer)
    assert sae.spec.trained_on == case.trained_on


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_family(family: Family, tmp_path: Path) -> None:
    case = family(tmp_path)
    check(load_sae(case.path, dtype=torch.float32, allow_pickle=case.pickled), case)
    if not case.pickled:
        description = describe(case.path)
        assert (description.format, description.architecture) == (case.format, case.architecture)
        assert weight_files(case.path) == case.weights


@pytest.mark.parametrize("name", ENCODERS)
def test_dictionary(name: str, tmp_path: Path) -> None:
    case = dictionary(tmp_path, name)
    check(load_sae(case.path, dtype="float32", allow_pickle=True), case)


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("BatchTopKSAE", {"dict_class": None, "trainer_class": "BatchTopKTrainer"}),
        ("GatedAutoEncoder", {"dict_class": None}),
        ("AutoEncoder", {"dict_class": None}),
        ("AutoEncoderTopK", {"k": None}),
        ("AutoEncoder", {"submodule_name": None}),
    ],
)
def test_dictionaries_of_older_releases(name: str, trainer: dict[str, None], tmp_path: Path) -> None:
    case = dictionary(tmp_path, name, **trainer)
    check(load_sae(case.path, dtype="float32", allow_pickle=True), case)


def test_contradicting_k_is_refused(tmp_path: Path) -> None:
    case = dictionary(tmp_path, "AutoEncoderTopK", k=6)
    with pytest.raises(SAEInvalidError) as error:
        load_sae(case.path, allow_pickle=True)
    assert error.value.fields["check"] == "k"


PICKLED: list[Family] = [family for family in FAMILIES if family.__name__ in ("openai_topk", "kissane", "qwen_scope")]
PICKLED.append(lambda root: dictionary(root, "BatchTopKSAE"))


@pytest.mark.parametrize("family", PICKLED, ids=["openai", "kissane", "qwen", "dictionary"])
def test_pickles_are_refused_unless_converted(family: Family, tmp_path: Path) -> None:
    case = family(tmp_path / "source")
    for read in (describe, weight_files, load_sae):
        with pytest.raises(SAEUnsupportedError) as error:
            read(case.path)
        assert error.value.fields["check"] == "pickle"
        assert error.value.fields["file"] == case.weights[0]
    source = case.path if case.path.is_file() else case.path / case.weights[0]
    parts = source.relative_to(tmp_path / "source").parts[:-1]
    made = convert(source, tmp_path / "made", repository_id=case.repository_id, parts=parts)
    description = describe(made)
    assert (description.format, description.hook_point) == (case.format, case.hook_point)
    assert weight_files(made.parent) == [made.name]
    check(load_sae(made, dtype=torch.float32), case)


def test_stored_type_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    case = next(family for family in FAMILIES if family.__name__ == "llama_scope_transcoder")(tmp_path)
    assert describe(case.path).dtype == "bfloat16"
    kept = load_sae(case.path)
    assert kept.spec.dtype == "bfloat16"
    assert {tensor.dtype for tensor in kept.weights.values()} == {torch.bfloat16}
    wide = load_sae(case.path, dtype="torch.float32")
    assert (wide.spec.dtype, wide.spec.stored_dtype) == ("float32", "bfloat16")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_sae(case.path, dtype="int8")


@pytest.mark.parametrize("device", ["cuda:99", "mps", "nonsense", torch.device("xpu")])
def test_a_device_that_is_not_there(tmp_path: Path, device: torch.device | str) -> None:
    """It is told before the files are looked at, as an error of this package, however torch puts it."""
    with pytest.raises(SAEError, match=f"this machine has no device {device} that torch can use: ."):
        load_sae(tmp_path / "none", device=device)


def test_qwen_without_its_repository_lacks_k(tmp_path: Path) -> None:
    case = qwen_scope(tmp_path)
    moved = case.path.parent.rename(tmp_path / "mirror") / case.path.name
    with pytest.raises(SAEInvalidError) as error:
        load_sae(moved, allow_pickle=True)
    assert error.value.fields["check"] == "k"
    assert load_sae(moved, allow_pickle=True, repository_id=case.repository_id).recipe.k == 7


@pytest.mark.parametrize("make", [qwen_scope, layer_file])
def test_a_folder_of_several_is_ambiguous(make: Family, tmp_path: Path) -> None:
    case = make(tmp_path)
    with pytest.raises(SAEInvalidError) as error:
        load_sae(case.path.parent, allow_pickle=True)
    assert error.value.fields["check"] == "ambiguous"


def test_decoder_rows_that_should_have_norm_1_are_looked_at(tmp_path: Path) -> None:
    case = next(family for family in FAMILIES if family.__name__ == "llama_scope_r1")(tmp_path)
    assert load_sae(case.path).spec.warnings == ()
    w = weights(7)
    tensors = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
    tensors |= {"decoder.weight": w["W_dec"].T.contiguous() * 1.5, "log_jumprelu_threshold": torch.zeros(D_SAE)}
    put(case.path, "sae_weights.safetensors", tensors)
    warnings = load_sae(case.path).spec.warnings
    assert any("norm 1" in warning for warning in warnings)
    assert any("mean norm of the dataset" in warning for warning in warnings)


def test_kinds_that_are_refused_say_which(tmp_path: Path) -> None:
    put(tmp_path / "clt", "W_enc_0.safetensors", {"W_enc_0": torch.zeros(4, 2)})
    put(tmp_path / "temporal", "latest_ckpt.safetensors", {"D": torch.zeros(4, 2)})
    put(tmp_path / "temporal", "conf.yaml", text="llm: {dimin: 4}")
    w = {"w_enc": torch.zeros(2, 4), "b_enc": torch.zeros(4), "w_dec": torch.zeros(4, 3, 2), "b_dec": torch.zeros(2)}
    put(tmp_path / "gemma_clt", "params.safetensors", w | {"threshold": torch.zeros(4)})
    w = {"w_enc": torch.zeros(3, 2, 4), "b_enc": torch.zeros(4), "w_dec": torch.zeros(4, 3, 2), "b_dec": torch.zeros(2)}
    put(tmp_path / "gemma_crosscoder", "params.safetensors", w | {"threshold": torch.zeros(4)})
    put(tmp_path / "layers", "params_layer_0.safetensors", {"w_enc": torch.zeros(2, 4)})
    put(tmp_path / "layers", "params_layer_1.safetensors", {"w_enc": torch.zeros(2, 4)})
    refused = {
        "clt": "clt", "temporal": "temporal", "gemma_clt": "clt", "gemma_crosscoder": "crosscoder",
        "layers": "crosscoder",
    }  # fmt: skip
    for folder, name in refused.items():
        with pytest.raises(SAEUnsupportedError) as error:
            describe(tmp_path / folder)
        assert error.value.fields["architecture"] == name
        assert ": that takes an " in error.value.detail


def test_two_formats_at_once_are_an_error(tmp_path: Path) -> None:
    case = next(family for family in FAMILIES if family.__name__ == "sparsify_groupmax")(tmp_path)
    np.savez(case.path / "params.npz", W_enc=np.zeros((2, 2)))
    with pytest.raises(SAEInvalidError, match="several formats") as error:
        describe(case.path)
    assert error.value.fields["check"] == "format"


def test_formats_have_distinct_names() -> None:
    assert len({each.name for each in FORMATS}) == len(FORMATS) == 14
    assert all(each.files and each.architectures for each in FORMATS)
