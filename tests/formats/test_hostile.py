"""Files made to harm: every one ends in an error that names the check, with nothing allocated and nothing run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_actor.errors import SAEInvalidError, SAENotFoundError, SAEUnsupportedError
from sae_actor.formats import check_values, describe
from sae_actor.formats.pickles import convert
from sae_actor.sae import load_sae
from tests.formats.readers.test_sae_lens import BASIC, FLAT, NESTED, write
from tests.formats.written import put, weights

WEIGHTS = "sae_weights.safetensors"


def check_of(path: Path, read: Any = describe) -> str:
    with pytest.raises(SAEInvalidError) as error:
        read(path)
    return str(error.value.fields["check"])


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "empty file": (b"", "header"),
    "five bytes": (b"12345", "header"),
    "header of an exabyte": (struct.pack("<Q", 2**60) + b"{}", "header"),
    "header of ten megabytes": (struct.pack("<Q", 10 << 20) + b"{" + b" " * (10 << 20), "header"),
    "pickle by another name": (pickle.dumps({"W_enc": 1}) * 4, "header"),
    "no JSON": (struct.pack("<Q", 4) + b"{abc", "header"),
    "nested": (struct.pack("<Q", 90_000) + b'{"a":' * 18_000, "header"),
    "a list": (struct.pack("<Q", 2) + b"[]", "header"),
    "entry is a string": (header({"W_enc": "F32"}), "header"),
    "no offsets": (header({"W_enc": {"dtype": "F32", "shape": [1]}}), "header"),
    "negative shape": (header({"W_enc": entry([-1, 4], 0, 4)}, b"1234"), "header"),
    "shape of floats": (header({"W_enc": entry([1.0], 0, 4)}, b"1234"), "header"),
    "shape of truths": (header({"W_enc": entry([True], 0, 4)}, b"1234"), "header"),
    "shape overflows": (header({"W_enc": entry([2**62, 2**62], 0, 4)}, b"1234"), "header"),
    "huge and consistent": (header({"W_enc": entry([2**20, 2**20], 0, 2**42)}, b"1234"), "truncated"),
    "offsets backwards": (header({"W_enc": entry([1], 4, 0)}, b"1234"), "header"),
    "offsets overlap": (header({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"123456"), "header"),
    "offsets leave a hole": (header({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12), "header"),
    "data left over": (header({"a": entry([1], 0, 4)}, b"0" * 99), "header"),
    "unknown type": (header({"a": entry([1], 0, 4, "F31")}, b"1234"), "dtype"),
    "an integer of many digits": (header({"a": entry([int("9" * 30)], 0, 4)}, b"1234"), "header"),
    "a name twice": (struct.pack("<Q", 16) + b'{"a":{},"a":{}} ', "header"),
    "metadata is a number": (header({"__metadata__": 5}), "header"),
    "metadata of lists": (header({"__metadata__": {"a": []}}), "header"),
    "malformed note of a conversion": (header({"__metadata__": {"sae_actor": "[]"}}), "header"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    data, check = HEADERS[name]
    write(tmp_path, FLAT)
    (tmp_path / WEIGHTS).write_bytes(data)
    assert check_of(tmp_path) == check
    assert check_of(tmp_path, load_sae) == check


CONFIGS = {
    "NaN": b'{"d_in": NaN}',
    "Infinity": b'{"d_in": -Infinity}',
    "1e999": b'{"d_in": 1e999}',
    "5000 digits": b'{"d_in": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"d_in": 12, "d_in": 13}',
    "nested": b"[" * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "nothing": b"",
    "5 MiB": b'{"a": "' + b"a" * (5 << 20) + b'"}',
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name: str, tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    (tmp_path / "cfg.json").write_bytes(CONFIGS[name])
    assert check_of(tmp_path) == "config"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tensor", BASIC)
def test_values_that_are_not_finite(tensor: str, bad: float, tmp_path: Path) -> None:
    w = {key: value.clone() for key, value in weights(30).items() if key in BASIC}
    w[tensor].view(-1)[-1] = bad
    assert check_of(write(tmp_path, FLAT, w), load_sae) == "finite"


def test_overflow_in_the_type_asked_for(tmp_path: Path) -> None:
    w = {key: value.clone() for key, value in weights(30).items() if key in BASIC}
    w["b_dec"][0] = 1e6
    path = write(tmp_path, FLAT, w)
    load_sae(path)
    with pytest.raises(SAEInvalidError, match="overflows") as error:
        load_sae(path, dtype="float16")
    assert error.value.fields["check"] == "finite"


def test_foreign_and_double_tensors(tmp_path: Path) -> None:
    w = weights(30)
    basic = {key: w[key] for key in BASIC}
    assert check_of(write(tmp_path / "a", FLAT, basic | {"surprise": torch.zeros(1)})) == "foreign_tensor"
    assert check_of(write(tmp_path / "b", FLAT, basic | {"threshold": w["threshold"]})) == "foreign_tensor"
    assert check_of(write(tmp_path / "c", FLAT, basic | {"encoder.bias": w["b_enc"].clone()})) == "duplicate_tensor"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32, torch.bool])
def test_types_that_hold_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    w = {key: weights(30)[key] for key in BASIC}
    assert check_of(write(tmp_path, FLAT, w | {"W_enc": w["W_enc"].to(dtype)})) == "dtype"


def test_a_transposed_matrix_is_not_put_right(tmp_path: Path) -> None:
    w = {key: weights(30)[key] for key in BASIC}
    assert check_of(write(tmp_path, FLAT, w | {"W_enc": w["W_enc"].T.contiguous()})) == "shape"


def test_weights_cut_after_their_header(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:-1])
    assert check_of(tmp_path) == "truncated"


def test_links(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", FLAT)
    inside = write(tmp_path / "inside", FLAT)
    (inside / WEIGHTS).unlink()
    (inside / WEIGHTS).symlink_to(outside / WEIGHTS)
    assert check_of(inside) == "link"
    (inside / WEIGHTS).unlink()
    (inside / "data").mkdir()
    (outside / WEIGHTS).rename(inside / "data" / WEIGHTS)
    (inside / WEIGHTS).symlink_to(f"data/{WEIGHTS}")
    assert describe(inside).format == "sae_lens"
    (inside / "cfg.json").unlink()
    (inside / "cfg.json").symlink_to("/etc/hostname")
    assert check_of(inside) == "link"


def test_links_of_the_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--user--saes"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("a" * 40)
    write(blobs, FLAT)
    folder = snapshot / "blocks.6"
    folder.mkdir(parents=True)
    for name in ("cfg.json", WEIGHTS):
        (folder / name).symlink_to(f"../../../blobs/{name}")
    assert load_sae(folder).spec.d_in == FLAT["d_in"]
    assert describe(folder / WEIGHTS).format == "sae_lens"
    elsewhere = write(tmp_path / "hub" / "models--user--other" / "blobs", FLAT)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(elsewhere / WEIGHTS)
    assert check_of(folder) == "link"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SAENotFoundError):
        describe(tmp_path / "nothing")
    assert check_of(tmp_path) == "format"
    put(tmp_path, "cfg.json", config=FLAT)
    assert check_of(tmp_path) == "format"
    os.mkfifo(tmp_path / WEIGHTS)
    assert check_of(tmp_path) == "files"
    (tmp_path / WEIGHTS).unlink()
    write(tmp_path, FLAT)
    (tmp_path / "cfg.json").unlink()
    assert check_of(tmp_path) == "config"


def test_a_file_that_changes_under_the_reader(tmp_path: Path) -> None:
    from sae_actor.formats.files import SaeFiles
    from sae_actor.formats.registry import read_layout
    from sae_actor.sae.load import load_layout

    layout = read_layout(SaeFiles(write(tmp_path, FLAT)))
    write(tmp_path, NESTED)
    with pytest.raises(SAEInvalidError) as error:
        load_layout(layout)
    assert error.value.fields["check"] == "changed"


def npz(path: Path, **arrays: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    w = {key: value.numpy() for key, value in weights(1).items() if key != "W_skip"}
    np.savez(path / "params.npz", **(w | arrays))
    return path


def test_npz(tmp_path: Path) -> None:
    assert describe(npz(tmp_path / "good")).architecture == "jumprelu"
    assert check_of(npz(tmp_path / "object", b_enc=np.array([{}], dtype=object))) == "dtype"
    assert check_of(npz(tmp_path / "integers", b_enc=np.zeros(40, dtype=np.int64))) == "dtype"
    assert check_of(npz(tmp_path / "shape", b_enc=np.zeros(41, dtype=np.float32))) == "shape"
    assert check_of(npz(tmp_path / "foreign", extra=np.zeros(1, dtype=np.float32))) == "foreign_tensor"
    nan = np.full(40, np.nan, dtype=np.float32)
    assert check_of(npz(tmp_path / "nan", threshold=nan), load_sae) == "finite"
    cut = npz(tmp_path / "cut") / "params.npz"
    cut.write_bytes(cut.read_bytes()[:-200])
    assert check_of(cut.parent) == "truncated"


def test_npz_whose_array_header_lies(tmp_path: Path) -> None:
    good = npz(tmp_path)
    data = io.BytesIO()
    np.lib.format.write_array(data, np.zeros((2, 2), dtype=np.float32))
    lie = data.getvalue().replace(b"(2, 2)", b"(9, 9)")
    with zipfile.ZipFile(good / "params.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["W_enc.npy"] = lie
    with zipfile.ZipFile(good / "params.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert check_of(good) == "truncated"


class Evil:
    """Runs a command when a pickle of it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code(zipped: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "Llama-SAE-l3.pth"
    torch.save({"encoder_linear.weight": Evil(canary)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SAEUnsupportedError):
        load_sae(file)
    assert check_of(file, lambda path: load_sae(path, allow_pickle=True)) == "pickle"
    assert check_of(file, lambda path: convert(path, tmp_path / "out")) == "pickle"
    assert not canary.exists()


def test_a_pickle_that_needs_too_much_memory(tmp_path: Path) -> None:
    file = tmp_path / "ae.pt"
    torch.save({"W_enc": torch.zeros(64 << 20, dtype=torch.uint8)}, file, _use_new_zipfile_serialization=False)
    assert check_of(file, lambda path: convert(path, tmp_path / "out", memory_limit=16 << 20)) == "memory"
    assert not (tmp_path / "out" / "ae.safetensors").exists()


def test_describing_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    program = (
        "import sys; from sae_actor.formats import FORMATS, describe, weight_files; "
        f"describe({str(tmp_path)!r}); weight_files({str(tmp_path)!r}); "
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_checked_without_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    w = {key: weights(30, dtype=dtype)[key] for key in BASIC}
    w["W_enc"].view(-1)[:2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).tiny], dtype=dtype)
    check_values(write(tmp_path / "good", FLAT, w))
    for bad in (torch.nan, -torch.inf):
        w["W_dec"].view(-1)[-1] = bad
        assert check_of(write(tmp_path / "bad", FLAT, w), check_values) == "finite"
    check_values(npz(tmp_path / "npz"))
