"""A hub that is away, moves or names what may not be: nothing wrong is kept."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from sae_actor.hub import HuggingFaceHub
from sae_actor.ports import Progress
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files
from tests.hub.conftest import MakeHub, Told, download, files_below
from tests.hub.test_faults import FAILED, FILES, HIDDEN, PATH, SIZE, nothing_counts_as_complete, refused


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["nobody listens", "no such host", "not TLS"])
async def test_a_hub_that_cannot_be_reached(server: HubServer, make_hub: MakeHub, kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = {
        "nobody listens": f"http://127.0.0.1:{port}",
        "no such host": "http://hub.invalid",
        "not TLS": server.url.replace("http:", "https:"),
    }[kind]
    error = await refused(make_hub(env={"HF_ENDPOINT": endpoint}))
    assert error.code == FAILED
    assert error.fields["reason"] in ("connection", "timeout")
    host = endpoint.partition("//")[2].partition(":")[0]
    assert error.detail.startswith(f"The connection to {host} failed (") or error.fields["reason"] == "timeout"


@pytest.mark.anyio
async def test_a_branch_that_moves_does_not_mix_two_commits(server: HubServer, hub: HuggingFaceHub) -> None:
    """The second commit arrives after the first was resolved, before the weights are fetched."""
    old = server.publish("org/saes", FILES)
    newer = {**FILES, **sae_files(PATH, d_in=64, d_sae=256, seed=9)}
    server.fault("store", cut_after=SIZE // 2, times=1)
    told = Told()

    def moving(message: Progress) -> None:
        told(message)
        if message.phase == "body":
            server.publish("org/saes", newer)

    found = await hub.download(download(path=PATH), moving)
    assert found.commit == old
    assert len(server.asked("info")) == 1


@pytest.mark.anyio
async def test_a_repository_deleted_midway_fails_clean(
    server: HubServer, hub: HuggingFaceHub, folder: Path, tmp_path: Path
) -> None:
    server.publish("org/saes", FILES)
    server.fault("store", cut_after=SIZE // 2, times=1)
    server.fault("head", path="weights", after=1, status=404, code="RepoNotFound")
    error = await refused(hub)
    assert error.code == HIDDEN
    nothing_counts_as_complete(folder, tmp_path)


@pytest.mark.anyio
async def test_names_that_lead_out_are_refused_before_anything_is_written(
    server: HubServer, hub: HuggingFaceHub, tmp_path: Path
) -> None:
    """Row 41: the list of a repository may name what it likes."""
    canary = tmp_path / "canary"
    canary.write_text("sings")
    for bad in ("../../../../canary", "/etc/passwd", "a\\..\\b", "a\x00b"):
        server.publish("org/saes", FILES)
        server.fault("tree", body=_tree_with(server, bad))
        assert (await refused(hub)).fields["reason"] == "unsafe_name"
        server.heal()
    assert canary.read_text() == "sings"
    assert files_below(tmp_path) == {"canary"}


def _tree_with(server: HubServer, name: str) -> bytes:
    entries = [server.entry(path, content) for path, content in FILES.items()]
    return json.dumps([*entries, {"type": "file", "oid": "a" * 40, "size": 4, "path": name}]).encode()
