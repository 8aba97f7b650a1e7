"""`log …` of a running service: what it says under load is what the files say after a stop."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sae_actor.client import Client
from sae_actor.errors import BadRequestError, NotFoundError
from sae_actor.eventlog import SqliteLog
from sae_actor.eventlog.audit.contents import NAMES, PROGRAMS
from tests.api.conftest import REPOSITORY, Running, serving
from tests.cli.conftest import NOWHERE, Ran
from tests.fakes.engine import FakeEngine

Command = Callable[..., Ran]
TAG = "ticket 7"


@contextmanager
def on_disk(folder: Path, **settings: Any) -> Iterator[Running]:
    """A service whose log is a real one, on a loop of its own."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[tuple[Running, asyncio.AbstractEventLoop]] = []

    async def live() -> None:
        log = await SqliteLog.open(folder)
        try:
            async with serving(log, engine=FakeEngine(), **settings) as running:  # type: ignore[arg-type]  # no MemoryLog
                found.append((running, asyncio.get_running_loop()))
                ready.set()
                await stop.wait()
        finally:
            await log.close()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0][0]
    finally:
        found[0][1].call_soon_threadsafe(stop.set)
        thread.join(20)


@contextmanager
def loaded(url: str) -> Iterator[None]:
    """Three clients that steer and generate without a pause."""
    stop, failures = threading.Event(), []

    def work(number: int) -> None:
        try:
            with Client(url) as client:
                sae_id = client.find("")
                for turn in range(1_000_000):
                    client.steer(sae_id, {number: float(turn)})
                    client.generate("Once", max_tokens=4, temperature=0, sae={"tag": f"load {number}"})
                    if stop.is_set():
                        return
        except Exception as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []


class Life(NamedTuple):
    folder: Path
    url: str
    sae_id: str
    said: dict[str, Any]
    """The object `sae` of an answer with the tag `TAG`."""
    steered: int
    head: int
    """When the load began."""


@contextmanager
def a_life(folder: Path) -> Iterator[Life]:
    with on_disk(folder, record_text=True) as running:
        with Client(running.url) as client:
            client.load_model("tiny")
            sae_id = client.download(REPOSITORY, "layer.1")["sae_id"]
            client.attach(sae_id)
            steered = client.steer(sae_id, {3: 7.5})["position"]
            said = client.generate("Once", max_tokens=5, temperature=0.7, seed=4, sae={"tag": TAG})["sae"]
            client.generate("Twice", max_tokens=3, temperature=0, sae={"tag": TAG, "baseline": True})
            client.steer(sae_id, [{"feature": 4, "strength": 0, "method": "scale", "exclude": []}])
            head = client.log(limit=1)["head"]["position"]
        yield Life(folder, running.url, sae_id, said, steered, head)


def without_log(out: str) -> str:
    """An explanation without what grows: the head of the log."""
    return "\n".join(line for line in out.splitlines() if not line.startswith("log "))


def views(out: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in out.splitlines()]
    for each in found:
        assert each.pop("log")["ok"]
    return found


def test_under_load_it_says_what_the_files_say_after_a_stop(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "log"
    with a_life(folder) as life:
        shown = command("log", "show", "--url", life.url, "--json", "--after", str(life.steered - 1)).out
        after = json.loads(shown.splitlines()[0])["time"]
        asked = [
            ("state", "--at", "0"),
            ("state", "--at", str(life.steered)),
            ("state", "--at", after),
            ("diff", "0", str(life.steered)),
            ("diff", str(life.steered), str(life.head)),
            ("diff", str(life.head), after),
            ("show", "--until", after),
            ("show", "--until", after, "--types", "SteeringChanged,SaeAttached"),
            ("show", "--until", after, "--sae", life.sae_id[:6]),
            ("explain", life.said["generation_id"]),
            ("explain", str(life.said["position"])),
            ("explain", str(life.said["position"] + 1)),
            ("explain", TAG),
            ("explain", TAG, "--methods"),
        ]
        answers: dict[tuple[str, ...], Ran] = {}
        with loaded(life.url):
            for question in asked:
                for json_too in ((), ("--json",)):
                    answers[*question, *json_too] = command("log", *question, *json_too, "--url", life.url)
            verified = command("log", "verify", "--url", life.url, "--json")
            heads = command("log", "verify", "--url", life.url, "--json", "--head", f"{life.steered}:{'0' * 64}")
            exported = [command("log", "export", str(tmp_path / name), "--url", life.url, "--json")
                        for name in ("bundle", "log.tar")]  # fmt: skip
        grown = json.loads(command("log", "verify", "--url", life.url, "--json").out)["events"]
        assert grown > life.head + 10, "there was a load"
    for (name, *argv), online in answers.items():
        offline = command("log", name, *argv, "--data-dir", str(folder))
        assert (online.code, online.err) == (offline.code, offline.err) == (0, ""), (name, argv)
        if "--methods" in argv:
            assert online.out.split("On record as")[0] == offline.out.split("On record as")[0]
        elif name == "explain" and "--json" in argv:
            assert views(online.out) == views(offline.out)
        elif name == "explain":
            assert without_log(online.out) == without_log(offline.out)
        else:
            assert online.out == offline.out, (name, argv)
    assert len(views(answers["explain", TAG, "--json"].out)) == 2
    found_by = [life.said["generation_id"], str(life.said["position"]), str(life.said["position"] + 1)]
    by_id, by_start, by_end = (views(answers["explain", of, "--json"].out) for of in found_by)
    assert by_id == by_start == by_end
    assert by_id[0]["intervention_sha256"] == life.said["intervention_sha256"]

    told = json.loads(verified.out)
    assert (told["ok"], told["verified_from"]) == (True, 1)
    head = f"{told['head']['position']}:{told['head']['hash']}"
    offline = command("log", "verify", "--data-dir", str(folder), "--json", "--head", head)
    assert (offline.code, json.loads(offline.out)["verified_from"]) == (0, 1)
    wrong = command("log", "verify", "--data-dir", str(folder), "--json", "--head", f"{life.steered}:{'0' * 64}")
    assert (heads.code, wrong.code) == (65, 65)
    for name in ("ok", "first_bad", "detail"):
        assert json.loads(heads.out)[name] == json.loads(wrong.out)[name]

    whole = command("log", "export", str(tmp_path / "after"), "--data-dir", str(folder))
    assert whole.code == 0
    with tarfile.open(tmp_path / "log.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for ran, there in zip(exported, (tmp_path / "bundle", next((tmp_path / "unpacked").iterdir())), strict=True):
        assert ran.code == 0
        assert sorted(os.listdir(there)) == sorted(NAMES)
        made = json.loads(ran.out)
        lines = (there / "events.ndjson").read_bytes().splitlines(keepends=True)
        assert len(lines) == made["events"] == made["head"]["position"]
        assert (tmp_path / "after" / "events.ndjson").read_bytes().startswith(b"".join(lines))
        for name in PROGRAMS:
            assert (there / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
        imported = command("log", "import", str(there), "--data-dir", str(tmp_path / f"from {there.name}"))
        assert imported.code == 0


def test_the_client(tmp_path: Path) -> None:
    with a_life(tmp_path / "log") as life, Client(life.url) as client:
        whole = client.verify()
        assert (whole["ok"], whole["verified_from"], whole["events"]) == (True, 1, life.head)
        assert client.verify(full=False) == whole
        assert client.verify(heads=[f"{whole['head']['position']}:{whole['head']['hash']}"]) == whole
        missing = client.verify(heads=[f"{life.head + 1}:{'0' * 64}"])
        assert (missing["ok"], missing["first_bad"]) == (False, life.head + 1)
        explained = client.explain(life.said["generation_id"])
        assert explained["log"] == whole
        (view,) = explained["generations"]
        assert client.explain(TAG, limit=1)["generations"] == [view]
        (other,) = client.explain(TAG, after=view["position"])["generations"]
        assert (other["baseline"], other["tag"]) == (True, TAG)
        assert client.diff(life.steered)["to"] == life.head
        assert client.diff(life.steered, life.steered)["attachments"] == {"added": [], "removed": [], "changed": []}
        lines = [json.loads(line) for line in client.log_lines(life.steered - 1, ["SteeringChanged"])]
        assert lines[0]["position"] == life.steered
        assert len(b"".join(client.export())) % tarfile.RECORDSIZE == 0
        for wrong in ("none", str(life.steered), str(life.head + 5), "9" * 20):
            with pytest.raises(NotFoundError):
                client.explain(wrong)
        for past in ((0, life.head + 1), (life.head + 1, 0)):
            with pytest.raises(NotFoundError):
                client.diff(*past)
        with pytest.raises(BadRequestError):
            client.diff("yesterday")


def test_which_log_is_meant(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither `--data-dir` nor `--url`: the folder of the service if it has stopped, else the service."""
    folder = tmp_path / "home" / "sae-actor"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAE_ACTOR_URL", NOWHERE)
    nothing = command("log", "verify")
    assert nothing.code == 78
    assert f"no service answers ({NOWHERE}" in nothing.err
    assert f"there is no log in {folder}" in nothing.err
    with a_life(folder) as life:
        named = command("log", "verify", "--data-dir", str(folder))
        assert named.code == 75
        assert "GET /api/log" in named.err
        held = command("log", "verify")
        assert (held.code, "is held by process" in held.err) == (75, True)
        monkeypatch.setenv("SAE_ACTOR_URL", life.url)
        assert command("log", "verify").out.startswith(f"ok: {life.head} events")
        assert command("log", "show", "--types", "Nonsense").code == 64
        assert command("log", "state", "--at", str(life.head + 1)).code == 64
        assert command("log", "explain", "nobody").code == 64
        both = command("log", "verify", "--data-dir", str(folder), "--url", life.url)
        assert (both.code, both.out) == (64, "")
        there = tmp_path / "there"
        there.mkdir()
        assert command("log", "export", str(there)).code == 64
        assert list(there.iterdir()) == []
    stopped = command("log", "verify", "--json")
    assert json.loads(stopped.out)["events"] == life.head + 1
    refused = command("log", "verify", "--url", NOWHERE)
    assert (refused.code, refused.out) == (69, "")
