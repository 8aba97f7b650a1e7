"""SAEs on the device: attached or not at all, and gone without a trace."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import Edit, HookPoint, SaeFile
from sae_actor.domain.state import SaeLocation
from sae_actor.engine import TorchEngine
from sae_actor.engine import engine as engine_module
from sae_actor.engine.saes import residents
from sae_actor.engine.saes.residents import PREPARED_KEPT
from sae_actor.errors import (
    LayerOutOfRangeError,
    ModelNotLoadedError,
    OutOfMemoryError,
    SAEError,
    SAEIncompatibleError,
    SAEInvalidError,
    SAEUnsupportedError,
)
from sae_actor.sae import SAE
from tests.engine.asking import active, attach, detach, finished, read, request
from tests.engine.tiny import save_tiny_sae

pytestmark = pytest.mark.anyio

IDS = tuple(range(40, 60))
EDIT = Edit(feature=3, strength=40.0, exclude=())


_EARLIER: list[SAE] = []


@pytest.fixture(autouse=True)
def earlier() -> Iterator[None]:
    """SAEs of other tests in this process: anyio 4.10 holds the frames of their fixtures."""
    gc.collect()
    _EARLIER[:] = [each for each in gc.get_objects() if issubclass(type(each), SAE)]
    yield
    _EARLIER.clear()


def saes_alive() -> int:
    """Without `_EARLIER`."""
    gc.collect()
    known = {id(each) for each in _EARLIER}
    return sum(issubclass(type(each), SAE) and id(each) not in known for each in gc.get_objects())


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def _nan(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    weights = load_file(path)
    weights["W_dec"][3, 4] = torch.nan
    save_file(weights, path)


def _no_config(folder: Path) -> None:
    (folder / "cfg.json").unlink()


def _wider(folder: Path) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_in": 33}))


@pytest.mark.parametrize("damage", [_nan, _no_config, _wider, shutil.rmtree])
async def test_a_damaged_sae_leaves_nothing(engine: TorchEngine, tiny_sae: Path, tmp_path: Path, damage: Any) -> None:
    folder = Path(shutil.copytree(tiny_sae, tmp_path / "sae"))
    before = tensors_alive()
    damage(folder)
    with pytest.raises(SAEError) as caught:
        await engine.attach(attach(5), str(folder))
    assert isinstance(caught.value, SAEInvalidError) or caught.value.code.startswith("sae_")
    assert saes_alive() == 0
    assert tensors_alive() == before
    assert await engine.detach(detach(5), 0.0) == 0


async def test_places_that_the_model_lacks(engine: TorchEngine, tiny_sae: Path) -> None:
    with pytest.raises(LayerOutOfRangeError):
        await engine.attach(attach(5, point=HookPoint("resid_post", 3)), str(tiny_sae))
    with pytest.raises(SAEIncompatibleError) as caught:
        await engine.attach(attach(5, out=HookPoint("mlp_act", 1)), str(tiny_sae))
    assert caught.value.fields == {"sae_d_in": 32, "model_d": 48}
    assert saes_alive() == 0


async def test_a_full_device_leaves_nothing(
    engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "place", full)
        with pytest.raises(OutOfMemoryError) as caught:
            await engine.attach(attach(5), str(tiny_sae))
    assert saes_alive() == 0, "though the error is still held"
    assert "9 GiB" not in caught.value.detail
    assert (await engine.attach(attach(6), str(tiny_sae))).device_bytes > 0


@pytest.mark.parametrize("when", ["loading", "placing", "done"])
async def test_a_cancelled_attach_leaves_nothing(
    engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    load_resident, place = residents.load_resident, residents.place

    def slow_load(*args: Any) -> Any:
        if when == "loading":
            reached.set()
            go_on.wait(5)
        return load_resident(*args)

    def slow_place(*args: Any) -> None:
        if when == "placing":
            reached.set()
            go_on.wait(5)
        place(*args)
        if when == "done":
            reached.set()
            go_on.wait(5)

    monkeypatch.setattr(engine_module, "load_resident", slow_load)
    monkeypatch.setattr(engine_module, "place", slow_place)
    task = asyncio.create_task(engine.attach(attach(5), str(tiny_sae)))
    await asyncio.to_thread(reached.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    # Behind the job that frees it:
    assert await engine.detach(detach(5), 0.0) == 0
    assert not engine._residents
    await engine.attach(attach(6), str(tiny_sae))
    del task
    assert saes_alive() == 1


async def test_an_unloaded_model_takes_no_sae(
    engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    load_resident = residents.load_resident

    def slow(*args: Any) -> Any:
        reached.set()
        go_on.wait(5)
        return load_resident(*args)

    monkeypatch.setattr(engine_module, "load_resident", slow)
    task = asyncio.create_task(engine.attach(attach(5), str(tiny_sae)))
    await asyncio.to_thread(reached.wait, 5)
    engine.retain(Residents())
    go_on.set()
    with pytest.raises(ModelNotLoadedError):
        await task
    assert not engine._residents


async def test_a_hundred_times_on_and_off_leaks_nothing(engine: TorchEngine, tiny_sae: Path) -> None:
    async def cycle(at: int) -> None:
        await engine.attach(attach(at), str(tiny_sae))
        await finished(engine, request(IDS, active(at, EDIT), tokens=2))
        assert await engine.detach(detach(at), 0.0) > 0

    await cycle(5)
    before = tensors_alive()
    for at in range(6, 106):
        await cycle(at)
    assert tensors_alive() == before
    assert saes_alive() == 0


async def test_a_text_that_was_ended_holds_nothing(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    sae = weakref.ref(engine._residents[5].sae)
    stream = engine.generate(request(IDS, active(5, EDIT), tokens=100))
    await anext(stream)
    assert await engine.detach(detach(5), 0.0) > 0
    gc.collect()
    assert sae() is None, "though the stream is not read to its end"
    assert (await read(stream))[1].reason == "intervention_removed"


async def test_a_median_holds_where_it_was_measured(engine: TorchEngine, tiny_sae: Path, tmp_path: Path) -> None:
    """The SAE was trained at resid_post.1: at another hook point, or where it does not say, |x| is not known."""
    folder = shutil.copytree(tiny_sae, tmp_path / "measured")
    (folder / "features.json").write_text('{"median_norm": 7.0, "3": {"max": 20.0}}')
    await engine.attach(attach(5), str(folder))
    await engine.attach(attach(6, point=HookPoint("mlp_out", 1)), str(folder))
    unnamed = save_tiny_sae(tmp_path / "unnamed", hook="somewhere")
    shutil.copy(folder / "features.json", unnamed)
    await engine.attach(attach(7), str(unnamed))
    norm, most = (
        Edit(feature=3, strength=2.0, unit="norm", exclude=()),
        Edit(feature=3, strength=2.0, unit="max", exclude=()),
    )
    assert (await engine.raw(5, (norm,)))[0].strength == pytest.approx(14.0, rel=1e-6)
    for at in (6, 7):
        with pytest.raises(SAEUnsupportedError, match="no median norm"):
            await engine.raw(at, (norm,))
        assert (await engine.raw(at, (most,)))[0].strength == 40.0


async def test_prepared_edits_are_kept_within_bounds(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    resident = engine._residents[5]
    first = resident.steering((EDIT,))
    assert resident.steering((EDIT,)) is first
    for strength in range(PREPARED_KEPT + 4):
        resident.steering((Edit(feature=3, strength=float(strength), exclude=()),))
    assert len(resident._prepared) == PREPARED_KEPT
    assert resident.steering((EDIT,)) is not first


async def test_prepared_edits_are_kept_within_so_many_bytes(
    engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    resident = engine._residents[5]
    sets = [tuple(Edit(feature, float(n), "project", exclude=()) for feature in range(20)) for n in range(6)]
    size = resident.steering(sets[0]).nbytes
    assert size > 20 * 32 * (8 + 4)
    monkeypatch.setattr("sae_actor.engine.saes.residents.PREPARED_BYTES", 3 * size)
    for edits in sets:
        resident.steering(edits)
    assert list(resident._prepared) == sets[3:]
    monkeypatch.setattr("sae_actor.engine.saes.residents.PREPARED_BYTES", 1)
    newest = resident.steering(sets[0])
    assert list(resident._prepared.values()) == [newest]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
async def test_the_type_in_which_it_computes(engine: TorchEngine, tiny_sae: Path, dtype: str) -> None:
    full = await engine.attach(attach(5), str(tiny_sae))
    half = await engine.attach(attach(6, dtype=dtype), str(tiny_sae))
    assert half.dtype == dtype
    assert half.device_bytes * 2 == full.device_bytes
    assert half.memory_bytes * 2 == full.memory_bytes
    end = await finished(engine, request(IDS, active(6, EDIT)))
    assert (end.reason, end.receipt.tokens_edited) == ("length", len(IDS) + 7)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the list of mappings is Linux's")
@pytest.mark.parametrize(
    ("source", "files", "dtype", "mapped"),
    [
        ("hub", (), "float32", True),
        ("hub", (), "bfloat16", False),  # converted on the way
        ("import", (), "float32", False),  # the user's own files may be cut short under us
        ("import", (SaeFile("a.safetensors", 1, "0" * 64, converted_from="a.pt"),), "float32", True),
    ],
)
async def test_only_files_that_the_service_alone_writes_are_mapped(
    engine: TorchEngine,
    tiny_sae: Path,
    *,
    source: Literal["hub", "import"],
    files: tuple[SaeFile, ...],
    dtype: str,
    mapped: bool,
) -> None:
    location = SaeLocation(source=source, repository_id=None, commit=None, path=None, files=files)
    effect = structs.replace(attach(5, dtype=dtype), location=location)
    await engine.attach(effect, str(tiny_sae))
    assert (str(tiny_sae / "sae_weights.safetensors") in _mappings()) == mapped
    end = await finished(engine, request(IDS, active(5, EDIT)))
    assert end.receipt.tokens_edited == len(IDS) + 7
    await engine.detach(detach(5), 0.0)
    gc.collect()
    assert str(tiny_sae / "sae_weights.safetensors") not in _mappings()


def _mappings() -> str:
    return Path("/proc/self/maps").read_text()


async def test_attaching_another_sae_while_a_text_runs(engine: TorchEngine, tiny_sae: Path, tmp_path: Path) -> None:
    """A text keeps the intervention it began with, beside SAEs that come and go."""
    other = save_tiny_sae(tmp_path, seed=9)
    await engine.attach(attach(5), str(tiny_sae))
    alone = await finished(engine, request(IDS, active(5, EDIT), tokens=60))
    stream = engine.generate(request(IDS, active(5, EDIT), tokens=60))
    await anext(stream)
    await engine.attach(attach(6), str(other))
    await engine.detach(detach(6), 0.0)
    assert (await read(stream))[1] == alone
