"""Runs of kind `profile`: what each feature does, worked out plainly from what the fake engine reads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_actor.domain.refs import Edit
from sae_actor.errors import SAEUnsupportedError
from sae_actor.service.lazy_engine import LazyEngine
from tests.api.conftest import Running, serving
from tests.fakes.hub import FakeHub
from tests.fakes.log import MemoryLog

from .conftest import TEXTS, rows, run, until

pytestmark = pytest.mark.anyio

D_SAE = 32


def expected(context: tuple[int, int]) -> dict[int, dict[str, Any]]:
    """Per feature: density, max, p99, the best examples. Feature token % 32 is 1 + token % 7 strong."""
    found: dict[int, list[tuple[float, int, int]]] = {}
    counted = 0
    for number, text in enumerate(TEXTS):
        for place, token in enumerate(text.encode()):
            if place:
                counted += 1
                found.setdefault(token % D_SAE, []).append((1.0 + token % 7, number, place))
    made = {}
    for feature, on in found.items():
        strong = [value for value, _, _ in on]
        best: list[tuple[int, int]] = []
        windows = set()
        for _, number, place in sorted(on, key=lambda each: -each[0]):
            window = TEXTS[number][max(0, place - context[0]) : place + context[1] + 1]
            if number not in [text for text, _ in best] and window not in windows:
                windows.add(window)
                best.append((number, place))
        made[feature] = {
            "density": len(on) / counted,
            "max": max(strong),
            "p99": float(np.quantile(strong, 0.99)),
            "examples": best[:20],
        }
    return made


async def test_a_profile(service: Running) -> None:
    await service.ready()
    run_id = await run(service, "profile")
    done = await until(service, run_id, "completed")
    assert done["rows"] == done["total"] == D_SAE
    assert done["summary"]["median_norm"] == 2.0
    plain = expected((10, 5))
    for row in await rows(service, run_id):
        known = plain.get(row["feature"])
        if known is None:
            assert (row["density"], row["max"], row["examples"]) == (0.0, 0.0, [])
            continue
        assert row["density"] == pytest.approx(known["density"])
        assert row["max"] == known["max"]
        assert row["p99"] == pytest.approx(known["p99"])
        assert [(each["text_index"], each["position"]) for each in row["examples"]] == known["examples"]
        assert sum(row["histogram"]["counts"]) == pytest.approx(
            row["density"] * (done["summary"]["tokens"] - len(TEXTS))
        )
        for example in row["examples"]:
            text, place = TEXTS[example["text_index"]], example["position"]
            assert "".join(example["tokens"]) == text[max(0, place - 10) : place + 6]
            assert example["activations"][min(place, 10)] == pytest.approx(1.0 + ord(text[place]) % 7)
        assert row["quantiles"][0]["to"] == pytest.approx(row["max"])


async def test_interrupted_it_comes_to_the_same(service: Running) -> None:
    sae_id = await service.ready()
    whole = await until(service, await run(service, "profile"), "completed")
    run_id = await run(service, "profile")
    await service.command("Detach", sae_id=sae_id)
    await service.command("Attach", sae_id=sae_id)
    done = await until(service, run_id, "completed")
    assert (done["summary"], done["rows_sha256"]) == (whole["summary"], whole["rows_sha256"])


async def test_units_and_the_feature_route_know_it(service: Running) -> None:
    sae_id = await service.ready()
    position = service.actor.state.attached[0].request_position
    lazy = LazyEngine(lambda: service.engine, service.engine.load_model)  # type: ignore[arg-type]  # no model is fetched
    await lazy._made()
    lazy.profiled = service.context.runs.profiles.known
    edits = (Edit(feature=ord("t") % 32, strength=0.5, unit="max"), Edit(feature=1, strength=0.25, unit="norm"))
    with pytest.raises(SAEUnsupportedError):
        await lazy.raw(position, edits)
    feature = f"/api/saes/{sae_id}/features/{ord('t') % 32}"
    assert (await service.client.get(feature)).json()["profile"] is None
    run_id = await run(service, "profile")
    await until(service, run_id, "completed")
    row = (await rows(service, run_id))[ord("t") % 32]
    found = (await service.client.get(feature)).raise_for_status().json()
    assert found["profile"] == row
    assert (found["max_activation"], found["density"]) == (row["max"], row["density"])
    assert [edit.strength for edit in await lazy.raw(position, edits)] == [0.5 * row["max"], 0.25 * 2.0]
    await service.command("DeleteRun", run_id=run_id)
    assert (await service.client.get(feature)).json()["profile"] is None


async def features(service: Running, **query: Any) -> list[dict[str, Any]]:
    answer = await service.client.get(f"/api/saes/{service.sae_ids[0]}/features", params={"limit": 100, **query})
    found: list[dict[str, Any]] = answer.raise_for_status().json()["features"]
    return found


async def test_search_knows_it(service: Running) -> None:
    """By density and by maximum, with the tokens that it fired on most; a later profile takes its place."""
    await service.ready()
    assert await features(service) == []
    run_id = await run(service, "profile")
    await until(service, run_id, "completed")
    told = {row["feature"]: row for row in await rows(service, run_id)}
    found = await features(service)
    assert [each["feature"] for each in found] == list(range(D_SAE))
    for each in found:
        row = told[each["feature"]]
        assert (each["density"], each["max"]) == (row["density"], row["max"])
        best = [max(zip(e["activations"], e["tokens"], strict=True), key=lambda one: one[0]) for e in row["examples"]]
        assert set(each["top_tokens"]) <= {token for _, token in best}
        assert bool(each["top_tokens"]) == bool(row["examples"])
    for sort in ("density", "max"):
        order = [each[sort] for each in await features(service, sort=sort)]
        assert order == sorted(order, reverse=True)
    densest = (await features(service, sort="density", limit=1))[0]
    assert densest["feature"] in [each["feature"] for each in await features(service, q=densest["top_tokens"][0])]
    later = await run(service, "profile", texts={"texts": ["zzz"]})
    await until(service, later, "completed")
    assert [each["feature"] for each in await features(service, sort="max") if each["max"]] == [ord("z") % D_SAE]
    await service.command("DeleteRun", run_id=later)
    assert await features(service) == found, "the one before it counts again"
    await service.command("DeleteRun", run_id=run_id)
    assert await features(service) == []


async def test_of_two_profiles_the_one_asked_for_last_counts_though_the_first_waited(service: Running) -> None:
    sae_id = await service.ready()
    service.engine.measure_gate = asyncio.Event()
    waited = await run(service, "profile")
    await service.command("Detach", sae_id=sae_id)
    await service.command("Attach", sae_id=sae_id, dtype="bfloat16")
    service.engine.measure_gate = None
    await until(service, await run(service, "profile", texts={"texts": ["zzz"]}), "completed")
    await service.command("Detach", sae_id=sae_id)
    await service.command("Attach", sae_id=sae_id)
    await until(service, waited, "completed")
    assert [each["feature"] for each in await features(service, sort="max") if each["max"]] == [ord("z") % D_SAE]


async def test_the_feature_route_shows_its_examples(service: Running) -> None:
    sae_id = await service.ready()
    run_id = await run(service, "profile")
    await until(service, run_id, "completed")
    row = (await rows(service, run_id))[ord("t") % D_SAE]
    found = (await service.client.get(f"/api/saes/{sae_id}/features/{ord('t') % D_SAE}")).raise_for_status().json()
    shown = sorted((each["tokens"], each["activations"]) for each in found["examples"])
    assert shown == sorted((each["tokens"], each["activations"]) for each in row["examples"])
    assert shown


def lose(data: Path) -> None:
    for path in data.glob("features.db*"):
        path.unlink()


async def test_its_examples_are_the_owners_alone(tmp_path: Path) -> None:
    """Also in a file that is older than this."""
    log, hub, folder = MemoryLog(), FakeHub(), tmp_path / "data"
    folder.mkdir()
    for _ in range(2):
        async with serving(log, hub=hub, data=folder) as service:
            if not service.context.runs.folder.folder.is_dir():
                await service.ready()
                await until(service, await run(service, "profile"), "completed")
            found = list(folder.glob("features.db*"))
            assert [path.name for path in found if path.stat().st_mode & 0o077] == []
            assert folder / "features.db" in found
        (folder / "features.db").chmod(0o644)


async def test_statistics_survive_a_restart_and_the_loss_of_their_file(tmp_path: Path) -> None:
    log, hub = MemoryLog(), FakeHub()
    async with serving(log, hub=hub, data=tmp_path) as service:
        await service.ready()
        await until(service, await run(service, "profile"), "completed")
        found, sae_ids = await features(service, sort="density"), service.sae_ids
    for lost in (False, True):
        if lost:
            lose(tmp_path)
        async with serving(log, hub=hub, data=tmp_path) as service:
            service.sae_ids = sae_ids
            assert await features(service, sort="density") == found


async def test_a_profile_elsewhere_is_not_the_search_s(service: Running) -> None:
    """At a hook point that the SAE was not trained at, features do other things."""
    sae_id = await service.ready(attach=False)
    await service.command("Attach", sae_id=sae_id, hook_point={"kind": "resid_post", "layer": 2})
    run_id = await run(service, "profile")
    await until(service, run_id, "completed")
    assert await features(service) == []
    found = (await service.client.get(f"/api/saes/{sae_id}/features/20")).raise_for_status().json()
    assert found["profile"] is not None
