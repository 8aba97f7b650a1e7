"""`sae-actor demo` as a user runs it: the three lines it prints, a kill, and the same again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sae_actor.demo.model import NAME

pytestmark = [pytest.mark.model, pytest.mark.skipif(shutil.which("curl") is None, reason="the lines need curl")]

BARE = (
    "It's a typical Monday, and I'm happy to share a bit about my day. Today, I'm in the IT department, working on a "
    "new project. I'm a bit overwhelmed, but\n"
)
STEERED = (
    "I'm a humble and compassionate God-fearing Christian who is deeply rooted in the Christian faith. I'm the creator "
    "of a beautiful and beautiful God. I'm the only creator of a rational being\n"
)


@contextmanager
def demo(model: Path, data: Path) -> Iterator[list[str]]:
    """The demo on a free port, ready; the three lines. Killed at the end."""
    command = [sys.executable, "-m", "sae_actor", "demo", "--port", "0", "--data-dir", str(data)]
    environment = {**os.environ, "SAE_ACTOR_DEMO_MODEL_DIR": str(model.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        patience = threading.Timer(60, process.kill)  # a demo that never gets ready goes on serving
        patience.start()
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines += [line] if line.startswith("curl") else []
                if len(lines) == 3:
                    break
            patience.cancel()
            assert len(lines) == 3
            yield lines
        finally:
            patience.cancel()
            process.send_signal(signal.SIGKILL)


def shell(line: str) -> str:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_three_lines_and_after_a_kill(real_model: Path, tmp_path: Path) -> None:
    assert real_model.name == NAME
    with demo(real_model, tmp_path) as (bare, steer, steered):
        assert shell(steered) == shell(bare) == BARE
        assert '"feature":584' in shell(steer)
        assert shell(steered) == STEERED
    begun = time.monotonic()
    with demo(real_model, tmp_path) as (bare, steer, steered):
        assert time.monotonic() - begun < 30
        assert shell(steered) == STEERED
        assert shell(bare) == BARE
    verified = [sys.executable, "-m", "sae_actor", "log", "verify", "--data-dir", str(tmp_path)]
    assert subprocess.run(verified, capture_output=True, text=True, check=True).stdout.startswith("ok: ")
