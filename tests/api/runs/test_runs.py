"""Runs over HTTP: asked for, shown, interrupted, taken up, cancelled, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import hashlib
import io
import json
import sqlite3
from pathlib import Path

import httpx
import pytest

from sae_actor.runs.store import RunFile
from tests.api.conftest import MODEL, Running, serving
from tests.fakes.engine import FakeEngine
from tests.fakes.hub import FakeHub
from tests.fakes.log import MemoryLog

from .conftest import TEXTS, Groups, rows, run, until, view

pytestmark = pytest.mark.anyio

TOKENS = sum(map(len, TEXTS))
"""The fake model's tokens are bytes."""
LINES = b"".join(json.dumps({"text": text}, separators=(",", ":")).encode() + b"\n" for text in TEXTS)


async def test_an_evaluation(service: Running) -> None:
    await service.ready()
    run_id = await run(service)
    done = await until(service, run_id, "completed")
    summary = done["summary"]
    assert (done["kind"], done["rows"], done["total"], done["reason"]) == ("evaluate", 3, 3, None)
    assert done["spec"] == {"sae_id": service.sae_ids[0], "max_tokens": None, "context": 128, "exclude": ["sink"]}
    assert (summary["tokens"], summary["excluded"]) == (TOKENS, len(TEXTS))
    assert summary["ce_loss_score"] == pytest.approx(3.5 / 4)
    assert summary["kl_div_score"] == pytest.approx(3.5 / 4)
    assert summary["texts_sha256"] == hashlib.sha256(LINES).hexdigest()
    answer = await service.client.get(f"/api/runs/{run_id}/rows")
    assert done["rows_sha256"] == hashlib.sha256(answer.content).hexdigest()
    lines = await rows(service, run_id)
    assert [row["texts"] for row in lines] == [[0, 64], [64, 128], [128, 150]]
    assert sum(row["tokens"] for row in lines) == TOKENS
    assert {row["environment"] for row in lines} == {done["environment"]}
    recorded = [event for event in await service.events() if event["type"].startswith("Run")]
    assert [event["type"] for event in recorded] == ["RunRequested", "RunCompleted"]
    assert recorded[1]["data"]["environments"] == {done["environment"]: {"engine": "fake"}}
    assert not any(text in json.dumps(recorded) for text in TEXTS)


async def test_rows_after_some_and_as_a_table(service: Running) -> None:
    await service.ready()
    run_id = await run(service)
    await until(service, run_id, "completed")
    assert [row["group"] for row in await rows(service, run_id, after=1)] == [1, 2]
    answer = await service.client.get(f"/api/runs/{run_id}/rows", params={"format": "csv", "after": 1})
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["texts"] for row in table] == ["[64,128]", "[128,150]"]
    assert float(table[0]["ce_loss_with_sae"]) == 2.5


async def test_at_most_so_many_tokens(service: Running) -> None:
    await service.ready()
    done = await until(service, await run(service, max_tokens=1000, context=8), "completed")
    assert done["summary"]["tokens"] == 1000
    assert done["rows"] == 1


async def test_waits_while_its_sae_is_away_and_goes_on_where_it_was(service: Running) -> None:
    sae_id = await service.ready()
    whole = await until(service, await run(service), "completed")
    service.engine.measure_gate = Groups(1)
    run_id = await run(service)
    await until(service, run_id, "running", rows=1)
    await service.command("Detach", sae_id=sae_id)
    waiting = await view(service, run_id)
    assert (waiting["state"], waiting["reason"]) == ("waiting", f"{sae_id} is not attached")
    service.engine.measure_gate = None
    await service.command("Attach", sae_id=sae_id)
    done = await until(service, run_id, "completed")
    assert (done["summary"], done["rows_sha256"]) == (whole["summary"], whole["rows_sha256"])


async def test_waits_while_another_model_is_loaded(service: Running) -> None:
    sae_id = await service.ready()
    whole = await until(service, await run(service), "completed")
    service.engine.measure_gate = Groups(2)
    run_id = await run(service)
    await until(service, run_id, "running", rows=2)
    while measured(service) < 3 + 3:
        await asyncio.sleep(0.01)
    await service.command("Detach", sae_id=sae_id)
    await service.command("LoadModel", model="other")
    waiting = await view(service, run_id)
    assert (waiting["state"], waiting["reason"]) == ("waiting", f"another model is loaded than {MODEL}")
    await service.command("LoadModel", model=MODEL)
    service.engine.measure_gate = None
    waiting = await view(service, run_id)
    assert (waiting["state"], waiting["reason"]) == ("waiting", f"{sae_id} is not attached")
    await service.command("Attach", sae_id=sae_id)
    done = await until(service, run_id, "completed")
    assert (done["summary"], done["rows_sha256"]) == (whole["summary"], whole["rows_sha256"])
    assert measured(service) == 3 + 3 + 1, "two groups were durable, the third was cut off and measured again"


def measured(service: Running) -> int:
    """How many groups the engine has begun to measure."""
    return sum(name == "measure" for name, _ in service.engine.calls)


async def test_cancelled_and_deleted(service: Running, tmp_path: Path) -> None:
    await service.ready()
    service.engine.measure_gate = asyncio.Event()
    run_id = await run(service)
    await service.command("CancelRun", run_id=run_id)
    assert (await view(service, run_id))["state"] == "cancelled"
    refused = await service.client.post("/api/commands", json={"type": "CancelRun", "run_id": run_id})
    assert (refused.status_code, refused.json()["code"]) == (409, "run_not_running")
    path = service.context.runs.folder.path(run_id)
    assert path.exists()
    await service.command("DeleteRun", run_id=run_id)
    assert not path.exists()
    missing = await service.client.get(f"/api/runs/{run_id}")
    assert (missing.status_code, missing.json()["code"]) == (404, "run_not_found")
    running = await run(service)
    await service.command("DeleteRun", run_id=running)
    assert list(service.context.runs.folder.folder.glob("run-*")) == []
    types = [event["type"] for event in await service.events() if event["type"].startswith("Run")]
    assert types[-3:] == ["RunRequested", "RunCancelled", "RunDeleted"]


async def test_the_end_of_its_sae_is_its_own(service: Running) -> None:
    sae_id = await service.ready()
    service.engine.measure_gate = asyncio.Event()
    run_id = await run(service)
    await service.command("Detach", sae_id=sae_id)
    await service.command("Delete", sae_id=sae_id)
    failed = await until(service, run_id, "failed")
    assert failed["error"]["code"] == "sae_not_found"


async def test_one_at_a_time_in_the_order_of_the_log(service: Running) -> None:
    await service.ready()
    service.engine.measure_gate = gate = asyncio.Event()
    first, second = await run(service), await run(service)
    waiting = await view(service, second)
    assert (waiting["state"], waiting["reason"]) == ("waiting", "another run computes")
    gate.set()
    await until(service, second, "completed")
    listed = (await service.client.get("/api/runs", params={"state": "completed"})).json()["runs"]
    assert [each["run_id"] for each in listed] == [first, second]
    later = (await service.client.get("/api/runs", params={"after": listed[0]["position"]})).json()["runs"]
    assert [each["run_id"] for each in later] == [second]
    assert (await service.client.get("/api/runs", params={"kind": "sweep"})).json() == {"runs": []}


async def test_a_restart_goes_on_with_what_is_durable(tmp_path: Path) -> None:
    log = MemoryLog()
    engine, hub = FakeEngine(), FakeHub()
    async with serving(log, engine=engine, hub=hub, runs_folder=tmp_path) as service:
        await service.ready()
        whole = await until(service, await run(service), "completed")
        engine.measure_gate = Groups(1)
        run_id = await run(service)
        await until(service, run_id, "running", rows=1)
    async with serving(log, hub=hub, runs_folder=tmp_path) as service:
        done = await until(service, run_id, "completed")
        assert (done["summary"], done["rows_sha256"]) == (whole["summary"], whole["rows_sha256"])
        assert [row["group"] for row in await rows(service, run_id)] == [0, 1, 2]


async def test_a_full_disk_pauses_it(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.ready()
    many = {"texts": TEXTS * 8}
    whole = await until(service, await run(service, texts=many), "completed")
    folder, opened = service.context.runs.folder, []
    real = folder.open

    def with_little_room(run_id: str) -> RunFile:
        file = real(run_id)
        file._connection.execute("PRAGMA max_page_count=1")  # as many as it has: as full as a disk without room
        opened.append(file)
        return file

    monkeypatch.setattr(folder, "open", with_little_room)
    run_id = await run(service, texts=many)
    paused = await until(service, run_id, "waiting")
    assert "disk is full" in paused["reason"]
    monkeypatch.undo()
    for file in opened:
        with contextlib.suppress(sqlite3.ProgrammingError):  # those of answers are closed
            file._connection.execute("PRAGMA max_page_count=100000")
    done = await until(service, run_id, "completed")
    assert done["rows_sha256"] == whole["rows_sha256"]


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"texts": {}}, "bad_request"),
        ({"texts": {"texts": []}}, "bad_request"),
        ({"texts": {"texts": ["a"], "file": "b.txt"}}, "bad_request"),
        ({"texts": {"texts_id": "texts-0123456789abcdef"}}, "texts_not_found"),
        ({"texts": {"file": "/etc/passwd.txt"}}, "forbidden"),
        ({"texts": {"file": "missing.txt"}}, "texts_not_found"),
        ({"context": 1}, "bad_request"),
        ({"more": True}, "bad_request"),
        ({"sae_id": "none-12345678"}, "sae_not_found"),
    ],
)
async def test_refused(service: Running, spec: dict[str, object], code: str) -> None:
    sae_id = await service.ready()
    body = {"type": "Run", "kind": "evaluate", "spec": {"sae_id": sae_id, "texts": {"texts": ["a text"]}, **spec}}
    answer = await service.client.post("/api/commands", json=body)
    assert answer.json()["code"] == code
    assert list(service.context.runs.folder.folder.glob("run-*")) == []


async def test_needs_a_model_and_an_attached_sae(service: Running) -> None:
    body = {"type": "Run", "kind": "evaluate", "spec": {"sae_id": "a-12345678", "texts": {"texts": ["a text"]}}}
    answer = await service.client.post("/api/commands", json=body)
    assert answer.json()["code"] == "model_not_loaded"
    await service.command("LoadModel", model=MODEL)
    body["spec"]["sae_id"] = await service.download("layer.1")  # type: ignore[index]
    answer = await service.client.post("/api/commands", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "sae_not_attached")


async def test_a_repeated_key_is_one_run(service: Running) -> None:
    sae_id = await service.ready()
    body = {"type": "Run", "kind": "evaluate", "spec": {"sae_id": sae_id, "texts": {"texts": TEXTS}}}
    one, other = [
        await service.client.post("/api/commands", json=body, headers={"idempotency-key": "mine"}) for _ in range(2)
    ]
    assert one.json() == other.json()
    assert len(list(service.context.runs.folder.folder.glob("run-*.db"))) == 1


async def test_chats_are_read_through_the_template(service: Running) -> None:
    await service.ready()
    chats = [[{"role": "user", "content": f"number {number}"}] for number in range(3)]
    lines = b"".join(json.dumps({"messages": chat}).encode() + b"\n" for chat in chats)
    put = await service.client.put("/api/texts", content=lines, headers={"content-type": "application/x-ndjson"})
    done = await until(service, await run(service, texts={"texts_id": put.json()["texts_id"]}), "completed")
    tokens = [len((await service.engine.tokenize(chat)).token_ids) for chat in chats]
    assert (done["summary"]["tokens"], done["summary"]["contexts"]) == (sum(tokens), 3)


async def test_a_repeated_key_is_that_run_also_where_it_would_be_refused_now(service: Running) -> None:
    """Its texts erased, its SAE detached, its model unloaded; another command under the key is refused as that."""
    sae_id = await service.ready()
    put = await service.client.put("/api/texts", content=LINES, headers={"content-type": "application/x-ndjson"})
    texts_id = put.json()["texts_id"]
    body = {"type": "Run", "kind": "evaluate", "spec": {"sae_id": sae_id, "texts": {"texts_id": texts_id}}}

    async def sent(**change: object) -> httpx.Response:
        key = {"idempotency-key": "mine"}
        return await service.client.post("/api/commands", json={**body, **change}, headers=key)

    first = await sent()
    assert first.status_code == 202
    done = await until(service, first.json()["run_id"], "completed")
    (await service.client.delete(f"/api/texts/{texts_id}")).raise_for_status()
    assert (await sent()).json() == first.json()
    await service.command("Detach", sae_id=sae_id)
    assert (await sent()).json() == first.json()
    await service.command("UnloadModel")
    assert (await sent()).json() == first.json()
    other = await sent(name="other")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert [each["run_id"] for each in (await service.client.get("/api/runs")).json()["runs"]] == [done["run_id"]]
    assert [path.stem for path in service.context.runs.folder.folder.glob("run-*.db")] == [done["run_id"]]


async def test_what_it_keeps_is_the_owners_alone(service: Running) -> None:
    await service.ready()
    put = await service.client.put("/api/texts", content=b"a\nb", headers={"content-type": "text/plain"})
    put.raise_for_status()
    await until(service, await run(service), "completed")
    folder = service.context.runs.folder.folder
    assert [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077] == []


async def test_uploads_and_files(service: Running) -> None:
    await service.ready()
    body = "\n".join(TEXTS).encode()
    put = await service.client.put("/api/texts", content=body, headers={"content-type": "text/plain"})
    uploaded = put.raise_for_status().json()
    assert (uploaded["count"], uploaded["sha256"]) == (len(TEXTS), hashlib.sha256(LINES).hexdigest())
    again = await service.client.put("/api/texts", content=LINES, headers={"content-type": "application/x-ndjson"})
    assert again.json() == uploaded == (await service.client.get(f"/api/texts/{uploaded['texts_id']}")).json()
    (service.context.texts_roots[0] / "mine.jsonl").write_bytes(LINES)
    found = []
    for source in ({"texts_id": uploaded["texts_id"]}, {"file": "mine.jsonl"}, {"texts": TEXTS}):
        done = await until(service, await run(service, texts=source), "completed")
        found.append(done["summary"])
        assert done["texts"][0]["sha256"] == uploaded["sha256"]
    assert found[0] == found[1] == found[2]
    gone = await service.client.delete(f"/api/texts/{uploaded['texts_id']}")
    assert gone.json() == uploaded
    missing = await service.client.get(f"/api/texts/{uploaded['texts_id']}")
    assert (missing.status_code, missing.json()["code"]) == (404, "texts_not_found")


async def test_a_byte_order_mark_is_no_part_of_a_text(service: Running) -> None:
    async def sent(body: bytes, kind: str) -> dict[str, object]:
        put = await service.client.put("/api/texts", content=body, headers={"content-type": kind})
        found: dict[str, object] = put.raise_for_status().json()
        return found

    plain = await sent(b"one\ntwo\n", "text/plain")
    assert await sent(b"\xef\xbb\xbfone\r\ntwo", "text/plain") == plain
    assert await sent(b'\xef\xbb\xbf"one"\n"two"\n', "application/x-ndjson") == plain


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "text/plain", 400),
        (b'{"text": 3}', "application/x-ndjson", 400),
        (b"\xff\xfe", "text/plain", 400),
        (b"x" * 2000, "text/plain", 413),
        (b"a", "text/html", 415),
        (b"[]", "application/json", 415),
    ],
)
async def test_uploads_that_are_refused(service: Running, content: bytes, kind: str, status: int) -> None:
    service.context.upload_bytes = 1000
    answer = await service.client.put("/api/texts", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    incoming = service.context.runs.folder.incoming
    assert not incoming.exists() or list(incoming.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "detail"),
    [("incoming", "The upload cannot be kept"), ("texts", "Texts and rows cannot be written")],
)
async def test_an_upload_that_cannot_be_kept_says_why(service: Running, name: str, detail: str) -> None:
    """It is no full disk."""
    folder = service.context.runs.folder.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"a file in the place of a folder")
    answer = await service.client.put("/api/texts", content=b"a", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.json()["detail"] == f"{detail}: File exists"
