"""`catalog` and `download` as a person runs them, with a repository of 300 SAEs and a bar on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tests.children import child
from tests.fakes.hub_server import HubServer
from tests.hub.build import config, safetensors

from .downloading import downloading
from .harness import ROOT, Process

D_IN, D_SAE = 256, 2048
"""4 MB an SAE."""
COUNT = 300


def command(process: Process, *arguments: str) -> tuple[str, str]:
    """Run `sae-actor` with a terminal as its standard error: what it printed, and what the terminal got."""
    screen, terminal = pty.openpty()
    environment = {**os.environ, "SAE_ACTOR_URL": process.url, "COLUMNS": "100"}
    with os.fdopen(screen, "rb", buffering=0) as shown:
        called = [sys.executable, "-m", "sae_actor", *arguments]
        with child(called, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True) as running:
            os.close(terminal)
            told = b""
            while piece := _read(shown.fileno()):
                told += piece
            out, _ = running.communicate(timeout=30)
    assert running.returncode == 0, told
    return out, told.decode()


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # Linux says so when the last writer has gone
        return b""


def test_one_of_three_hundred(server: HubServer, data: Path) -> None:
    weights, files = safetensors(D_IN, D_SAE), {}
    for layer in range(COUNT):
        files[f"blocks.{layer}/cfg.json"] = config(D_IN, D_SAE, layer)
        files[f"blocks.{layer}/sae_weights.safetensors"] = weights
    server.publish("org/many", files)
    server.fault("store", rate=4_000_000)
    with downloading(server, data) as process:
        out, _ = command(process, "catalog", "org/many", "--json")
        listed = json.loads(out)
        assert len(listed) == COUNT
        sizes = {len(files[f"blocks.{n}/cfg.json"]) + len(weights) for n in range(COUNT)}
        assert {entry["file_size_bytes"] for entry in listed} == sizes
        assert not server.asked("store")
        lists, bodies = server.sent("info", "tree", "paths"), server.sent("get")
        out, shown = command(process, "download", "org/many", "--path", "blocks.7", "--json")
        done = next(event for event in json.loads(out)["events"] if event["type"] == "DownloadCompleted")
        assert [file["path"] for file in done["data"]["files"]] == [
            "blocks.7/cfg.json", "blocks.7/sae_weights.safetensors",
        ]  # fmt: skip
        assert server.sent("store") + server.sent("get") - bodies == sum(f["bytes"] for f in done["data"]["files"])
        assert server.sent("info", "tree", "paths") - lists < 2000
    percents = [int(each) for each in re.findall(r"(\d+)%[^\r]*MB/s[^\r]*blocks\.7/sae_weights\.safetensors", shown)]
    assert len(percents) >= 2
    assert percents == sorted(percents)
    assert "#" in shown
