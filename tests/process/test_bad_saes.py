"""Row 55: damaged and hostile SAE files, imported into and downloaded by a real service, in flat memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs here

from tests.fakes.hub_server import HubServer
from tests.formats.test_hostile import HEADERS
from tests.hub.build import config, safetensors, write

from .downloading import downloading, files_of
from .harness import Process

WEIGHTS = "sae_weights.safetensors"
GROWTH_BYTES = 24 << 20
"""Of the service over all cases: the smallest promise of the headers is a gigabyte."""


def retold(**tensors: Any) -> bytes:
    """The weights with other entries in their header; None leaves a tensor's entry out, and its bytes too."""
    whole = safetensors()
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    kept, end = b"", 0
    for name, entry in list(header.items()):
        start, stop = entry["data_offsets"]
        piece = data[start:stop]
        if name in tensors and tensors[name] is None:
            del header[name]
            continue
        if name in tensors:
            dtype, size = tensors[name]
            entry["dtype"], piece = dtype, piece[: len(piece) * size // 4]
        entry["data_offsets"] = [end, end + len(piece)]
        kept, end = kept + piece, end + len(piece)
    if "extra" in tensors:
        header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
        kept += bytes(4)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + kept


NAN = struct.pack("<f", float("nan"))
CASES: dict[str, tuple[bytes, bytes, str]] = {
    **{f"header: {name}": (config(), data, check) for name, (data, check) in HEADERS.items()},
    "NaN": (config(), safetensors()[:-4] + NAN, "finite"),
    "wrong d_in": (config(d_in=9), safetensors(), "shape"),
    "fp8": (config(), retold(W_enc=("F8_E4M3", 1)), "dtype"),
    "no W_dec": (config(), retold(W_dec=None), "missing_tensor"),
    "a tensor too many": (config(), retold(extra=True), "foreign_tensor"),
}
"""Settings, weights, and the check that refuses them."""
DOWNLOADED = ("header: header of an exabyte", "header: nested", "NaN", "wrong d_in", "fp8", "no W_dec",
              "a tensor too many")  # fmt: skip
"""Through the child process as well; which reads with the same code, so that not every header goes there."""


def refused(process: Process, **command: str) -> dict[str, Any]:
    """The error of a command that fails and leaves nothing but its two events."""
    outcome = process.send("-".join(command.values()), **command)
    assert outcome["status"] == "failed", (command, outcome)
    error: dict[str, Any] = outcome["error"]
    assert [event["type"] for event in outcome["events"]] == ["DownloadRequested", "DownloadFailed"]
    return error


def test_every_one_is_refused_by_name_in_flat_memory(server: HubServer, data: Path, tmp_path: Path) -> None:
    root = tmp_path / "imports"
    for number, (settings, weights, _) in enumerate(CASES.values()):
        write(root / str(number), {"cfg.json": settings, WEIGHTS: weights})
    write(root / "good", {"cfg.json": config(), WEIGHTS: safetensors()})
    with downloading(server, data, "--quick", "--import-root", str(root)) as process:
        assert process.send("good", type="Import", path=str(root / "good"))["status"] == "completed"
        service = psutil.Process(process.pid)
        before = service.memory_info().rss
        for number, (name, (_, _, check)) in enumerate(CASES.items()):
            error = refused(process, type="Import", path=str(root / str(number)))
            assert (error["code"], error["check"]) == ("sae_invalid", check), name
        for name in DOWNLOADED:
            settings, weights, check = CASES[name]
            repository_id = f"org/{list(CASES).index(name)}"
            server.publish(repository_id, {"cfg.json": settings, WEIGHTS: weights})
            error = refused(process, type="Download", repository_id=repository_id)
            assert (error["code"], error["check"]) == ("sae_invalid", check), name
        assert service.memory_info().rss - before < GROWTH_BYTES
        assert files_of(data) == {}
        assert {sae["status"] for sae in process.client.get("/api/saes").json()["saes"]} == {"cached", "error"}
        assert process.client.get("/api/log/verify").json()["ok"]
