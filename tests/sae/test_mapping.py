"""Mapped and read weights are the same; adding to a wide mapped SAE touches only the rows that are edited."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_actor.domain.refs import Edit
from sae_actor.errors import SAEInvalidError
from sae_actor.sae import Steering, load_sae

D_IN, D_SAE = 64, 512


def folder(path: Path, dtype: torch.dtype = torch.float32, linear: bool = False) -> Path:
    torch.manual_seed(0)
    W_enc, W_dec = torch.randn(D_IN, D_SAE) / 8, torch.randn(D_SAE, D_IN) / 8
    tensors = {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(D_IN)}
    if linear:
        tensors |= {"encoder.weight": W_enc.T.contiguous(), "decoder.weight": W_dec.T.contiguous()}
    else:
        tensors |= {"W_enc": W_enc, "W_dec": W_dec}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps({"d_in": D_IN, "d_sae": D_SAE, "hook_name": "blocks.0.hook_resid_post"}))
    return path


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [None, torch.float32])
def test_mapped_is_the_same(linear: bool, dtype: torch.dtype, held: torch.dtype | None, tmp_path: Path) -> None:
    path = folder(tmp_path, dtype, linear)
    read, mapped = load_sae(path, dtype=held), load_sae(path, dtype=held, mapped=True)
    for name, tensor in read.weights.items():
        assert torch.equal(mapped.weights[name], tensor), name
    x = torch.randn(3, D_IN)
    torch.testing.assert_close(mapped(x), read(x))


def test_a_mapping_is_private(tmp_path: Path) -> None:
    path = folder(tmp_path)
    before = (path / "sae_weights.safetensors").read_bytes()
    load_sae(path, mapped=True).W_dec.zero_()
    assert (path / "sae_weights.safetensors").read_bytes() == before


def test_a_mapped_vector_that_is_not_finite_is_found(tmp_path: Path) -> None:
    path = folder(tmp_path)
    file = path / "sae_weights.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(file)
    tensors["b_enc"][3] = torch.nan
    save_file(tensors, file)
    with pytest.raises(SAEInvalidError):
        load_sae(path, mapped=True)


def resident_kib(start: str) -> int:
    """Resident KiB of the mappings of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.endswith(start)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")
def test_adding_touches_only_the_edited_rows(tmp_path: Path) -> None:
    d_sae = 65_536
    file = tmp_path / "sae_weights.safetensors"
    matrix = torch.ones(d_sae, D_IN)
    save_file(
        {"W_enc": matrix.T.contiguous(), "W_dec": matrix, "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(D_IN)}, file
    )
    config = {"d_in": D_IN, "d_sae": d_sae, "hook_name": "blocks.0.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    sae = load_sae(tmp_path, mapped=True)
    assert sae.nbytes > 32 << 20
    edits = [Edit(5, 3.0), Edit(60_000, 0.0, "project")]
    delta, _ = Steering.prepare(sae, edits).difference(torch.ones(4, D_IN), torch.ones(2, 4, dtype=torch.bool))
    assert (delta != 0).all()
    assert resident_kib(str(file)) < 8 << 10  # the kernel may map 2 MiB around each row it faults in
