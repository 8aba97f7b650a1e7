"""What `sae-actor demo` and `serve` say on standard error with the real model: our own lines, no library's."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.children import child
from tests.process.harness import ROOT, until

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

TEXT = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2, "sae": {"baseline": True}}


def said(folder: Path, model: Path, *arguments: str, level: str = "warning") -> list[str]:
    """Lines of standard error of a life in which a text was made, in order."""
    environment = {
        **os.environ,
        "SAE_ACTOR_DEMO_MODEL_DIR": str(model.parent),
        "SAE_ACTOR_ENGINE_THREADS": "1",
        "SAE_ACTOR_SERVER_LOG_LEVEL": level,
        "PYTHONWARNINGS": "default",
    }
    words = folder / f"{arguments[0]}-{level}.stderr"
    command = [sys.executable, "-m", "sae_actor", *arguments, "--port", "0", "--data-dir", str(folder / arguments[0])]
    with words.open("wb") as stderr, child(command, cwd=ROOT, env=environment, stdout=-1, stderr=stderr) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().split()[-1]
        with httpx.Client(base_url=url, timeout=60, verify=False) as client:
            until(lambda: client.get("/ready").status_code == 200, 100)
            answer = client.post("/v1/chat/completions", json=TEXT)
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    return words.read_text().splitlines()


def test_a_start_says_nothing_of_its_libraries(tmp_path: Path, real_model: Path) -> None:
    assert said(tmp_path, real_model, "serve", "--model", str(real_model)) == []
    assert said(tmp_path, real_model, "demo") == ["loading the model and attaching the SAE …"]


def test_at_debug_each_warning_of_a_library_is_a_line_with_its_name(tmp_path: Path, real_model: Path) -> None:
    lines = said(tmp_path, real_model, "serve", "--model", str(real_model), level="debug")
    begun = [line.split(" ")[1] for line in lines if line.startswith(("DEBUG ", "INFO "))]
    assert all(name.startswith("sae_actor.") for name in begun)
    told = [line for line in lines if " sae_actor.libraries." in line]
    assert len(told) == len(set(told))
