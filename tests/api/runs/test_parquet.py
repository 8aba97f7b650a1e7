"""Texts that are sent as Parquet, and rows that are read as Parquet. Run where pyarrow is:
`python -m tests.environments parquet`."""

from __future__ import annotations

import importlib
import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Running

from .conftest import TEXTS, rows, run, until

pytestmark = pytest.mark.anyio

PARQUET = {"content-type": "application/vnd.apache.parquet"}
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def written(**columns: Any) -> bytes:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write_table(arrow.table(columns), out)
    return out.getvalue()


def read(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = importlib.import_module("pyarrow.parquet").read_table(io.BytesIO(data)).to_pylist()
    return found


async def upload(service: Running, content: bytes, **headers: str) -> Any:
    return await service.client.put("/api/texts", content=content, headers=headers or PARQUET)


@needs_pyarrow
async def test_texts_as_parquet_are_those_of_any_form(service: Running) -> None:
    await service.ready()
    labels = [number % 3 for number in range(len(TEXTS))]
    sent = await upload(service, written(id=labels, text=TEXTS, label=labels))
    assert sent.status_code == 200, sent.text
    lines = "".join(f'{{"text":"{text}","label":{label}}}\n' for text, label in zip(TEXTS, labels, strict=True))
    other = await upload(service, lines.encode(), **{"content-type": "application/x-ndjson"})
    assert sent.json() == other.json()
    plain = await upload(service, written(text=TEXTS))
    assert plain.json() == (await upload(service, "\n".join(TEXTS).encode(), **{"content-type": "text/plain"})).json()
    (service.context.texts_roots[0] / "mine.parquet").write_bytes(written(text=TEXTS))
    of_upload = await until(service, await run(service, texts={"texts_id": plain.json()["texts_id"]}), "completed")
    of_file = await until(service, await run(service, texts={"file": "mine.parquet"}), "completed")
    of_request = await until(service, await run(service), "completed")
    assert of_upload["summary"] == of_file["summary"] == of_request["summary"]


@needs_pyarrow
async def test_rows_as_parquet(service: Running) -> None:
    """Numbers stay numbers; lists and objects are JSON, as in CSV."""
    await service.ready()
    run_id = await run(service)
    await until(service, run_id, "completed")
    answer = await service.client.get(f"/api/runs/{run_id}/rows", params={"format": "parquet", "after": 1})
    assert answer.headers["content-type"] == PARQUET["content-type"]
    told, found = (await rows(service, run_id))[1:], read(answer.content)
    assert [each.pop("texts") for each in found] == ["[64,128]", "[128,150]"]
    assert found == [{name: value for name, value in row.items() if name != "texts"} for row in told]
    profile = await run(service, "profile")
    await until(service, profile, "completed")
    answer = await service.client.get(f"/api/runs/{profile}/rows", params={"format": "parquet"})
    assert [each["max"] for each in read(answer.content)] == [row["max"] for row in await rows(service, profile)]


@needs_pyarrow
async def test_values_of_several_types_are_json() -> None:
    table = importlib.import_module("sae_actor.runs.parquet").table
    assert read(table({"a": [1, 2.5, None], "b": ["x", 1, None], "c": [None, None, None]})) == [
        {"a": 1.0, "b": '"x"', "c": None},
        {"a": 2.5, "b": "1", "c": None},
        {"a": None, "b": None, "c": None},
    ]


@needs_pyarrow
@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"words": ["a"]}, "no column `text`"),
        ({"text": [1, 2]}, "not text"),
        ({"text": ["a", None]}, "not text"),
        ({"text": ["a" * 100_000] * 1000}, "times as long as their file"),
        ({"text": ["a" * 10_000_001]}, "more than 10000000 characters"),
        ({"text": []}, "no text"),
    ],
)
async def test_parquet_that_is_refused(service: Running, columns: dict[str, Any], why: str) -> None:
    answer = await upload(service, written(**columns))
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert why in answer.json()["detail"]
    assert list(service.context.runs.folder.incoming.iterdir()) == []


@needs_pyarrow
@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all"])
async def test_what_is_no_parquet(service: Running, damage: bytes) -> None:
    whole = written(text=TEXTS)
    for content in (damage, whole[: len(whole) // 2], whole[:-20] + b"\xff" * 20):
        answer = await upload(service, content)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text


async def test_without_pyarrow_it_is_refused_by_name(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.ready()
    run_id = await run(service)
    await until(service, run_id, "completed")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    answers = [
        await upload(service, b"PAR1"),
        await service.client.get(f"/api/runs/{run_id}/rows", params={"format": "parquet"}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (422, "sae_unsupported")
        assert "pip install 'sae-actor[parquet]'" in answer.json()["detail"]
