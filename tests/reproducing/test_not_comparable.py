"""`log reproduce` where nothing can be said: what a text ran under is gone, or the log does not hold it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio

from sae_actor.eventlog import SqliteLog, redact
from tests.cli.conftest import Ran
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.conftest import COMMIT, Log, OfHub, Reproduce
from tests.reproducing.making import View, forged, stronger


def reason(reproduce: Reproduce, folder: Path, name: str) -> str:
    code, (view,) = reproduce(folder, name)
    assert (code, view["verdict"]) == (69, "not_comparable")
    assert "tokens" not in view
    return str(view["reason"])


def test_weights_that_changed_or_are_gone(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    kept = shutil.copytree(log.sae, tmp_path / "kept")
    weights = log.sae / "sae_weights.safetensors"
    try:
        save_tiny_sae(log.sae, seed=9)
        assert log.sae_id in reason(reproduce, log.folder, log.texts["greedy"])
        assert reproduce(log.folder, log.texts["nothing attached"])[0] == 0
        weights.unlink()
        assert log.sae_id in reason(reproduce, log.folder, log.texts["greedy"])
    finally:
        shutil.copytree(kept, log.sae, dirs_exist_ok=True)
    assert reproduce(log.folder, log.texts["greedy"])[0] == 0


def test_a_model_that_changed_or_is_gone(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    kept = log.model.rename(tmp_path / "kept")
    try:
        assert str(log.model) in reason(reproduce, log.folder, log.texts["greedy"])
        save_tiny_model(log.model, seed=4)
        told = reason(reproduce, log.folder, log.texts["greedy"])
        assert told.endswith("not the ones it was loaded from: model.safetensors")
        code, views = reproduce(log.folder, "--all")
        assert (code, {view["verdict"] for view in views}) == (69, {"not_comparable"})
    finally:
        shutil.rmtree(log.model, ignore_errors=True)
        kept.rename(log.model)


def test_a_model_of_the_hub_s_cache(of_hub: OfHub, reproduce: Reproduce) -> None:
    """Found by its commit, wherever the branch is now; and not fetched where it is not there."""
    (of_hub.repository / "refs" / "main").write_text("f" * 40)
    code, (view,) = reproduce(of_hub.folder, of_hub.text)
    assert (code, view["verdict"]) == (0, "identical")
    (of_hub.repository / "snapshots" / COMMIT / "model.safetensors").unlink()
    told = reason(reproduce, of_hub.folder, of_hub.text)
    assert told == f"the model org/tiny: commit {COMMIT} is not in the hub's cache on this machine"


def test_another_kind_of_machine(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    """What was made on another device and differs by more than a near-tie says nothing; the same tokens do."""

    def on_another(kind: str, data: View) -> None:
        if kind == "ModelLoaded":
            data["model"]["device"] = "cuda:7"
            data["model"]["environment"]["device"] = "cuda:7"
        if data.get("generation_id") == log.texts["greedy"]:
            stronger(data)

    folder = anyio.run(forged, log.folder, tmp_path / "forged", on_another)
    code, (same, other) = reproduce(folder, log.texts["nothing steered"], log.texts["greedy"])
    assert code == 69
    assert (same["verdict"], same["environment"]["differs"]) == ("identical", ["device"])
    assert (other["verdict"], other["reason"]) == (
        "not_comparable",
        "this machine is of another kind (other device)",
    )


def test_what_the_log_does_not_hold(
    log: Log, tmp_path: Path, reproduce: Reproduce, command: Callable[..., Ran]
) -> None:
    folder = Path(shutil.copytree(log.folder, tmp_path / "log"))
    name = log.texts["greedy"]
    position = next(view["position"] for view in reproduce(log.folder, name)[1])

    async def erase(at: int) -> None:
        await redact(folder, at, "asked for", time="2026-01-01T00:00:00.000000Z")

    anyio.run(erase, position)
    assert reason(reproduce, folder, name).startswith("the payload of its beginning was erased")
    anyio.run(erase, position + 1)
    gone = command("log", "reproduce", name, "--data-dir", str(folder))
    assert (gone.code, gone.out) == (64, "")
    assert command("log", "reproduce", "--data-dir", str(folder)).code == 64
    assert command("log", "reproduce", name, "--all", "--data-dir", str(folder)).code == 64
    assert command("log", "reproduce", "gen-none", "--data-dir", str(folder)).code == 64
    assert command("log", "reproduce", name, "--data-dir", str(tmp_path / "none")).code == 78


def test_while_a_service_holds_the_log(log: Log, command: Callable[..., Ran]) -> None:
    async def held() -> Ran:
        service = await SqliteLog.open(log.folder)
        try:
            return await anyio.to_thread.run_sync(
                lambda: command("log", "reproduce", "--all", "--data-dir", str(log.folder))
            )
        finally:
            await service.close()

    assert anyio.run(held).code == 75
