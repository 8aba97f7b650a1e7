"""A file's headers are the hub's own: which redirects are followed for them is the same under every huggingface_hub."""

from __future__ import annotations

import pytest

from sae_actor.errors import SAEDownloadError
from sae_actor.hub import HuggingFaceHub
from tests.fakes.hub_server import HubServer, git_id
from tests.hub.build import sae_files
from tests.hub.conftest import Told, download

pytestmark = pytest.mark.anyio

FILES = sae_files("layer.1")
WEIGHTS = "layer.1/sae_weights.safetensors"
CONFIG = "layer.1/cfg.json"


async def test_the_place_of_the_bytes_is_asked_for_them_alone(server: HubServer, hub: HuggingFaceHub) -> None:
    """It is another port of the same host, and has no headers of a hub."""
    server.publish("org/saes", FILES)
    found = await hub.download(download(path="layer.1"), Told())
    assert found.sae.d_sae == 32
    assert [each.method for each in server.asked("store")] == ["GET"]


@pytest.mark.parametrize("whole", [True, False], ids=["with the host", "without"])
async def test_a_file_of_a_renamed_repository(server: HubServer, hub: HuggingFaceHub, whole: bool) -> None:
    """The query of the redirect is part of the address."""
    commit = server.publish("org/old", FILES)
    server.repositories["org/new"] = server.repositories["org/old"]
    for path in (WEIGHTS, CONFIG):
        there = f"/org/new/resolve/{commit}/{path}?download=true"
        server.fault("head", path=path, location=f"{server.url if whole else ''}{there}", times=1)
    found = await hub.download(download("org/old", "layer.1"), Told())
    assert found.commit == commit
    moved = [each.target for each in server.asked("head") if "/org/new/" in each.target]
    assert len(moved) == 2
    assert all(each.endswith("?download=true") for each in moved)


async def test_bytes_on_the_hubs_own_host(server: HubServer, hub: HuggingFaceHub) -> None:
    """A mirror of one origin: the redirect says everything of the file, and where it leads to says nothing."""
    server.publish("org/saes", FILES)
    server.store_url = f"{server.url}/stored"
    found = await hub.download(download(path="layer.1"), Told())
    assert found.sae.d_sae == 32
    assert [each.method for each in server.asked("store")] == ["GET"]


async def test_an_etag_may_be_called_weak(server: HubServer, hub: HuggingFaceHub) -> None:
    """As a proxy does that may compress."""
    server.publish("org/saes", FILES)
    server.fault("head", path=CONFIG, headers={"ETag": f'W/"{git_id(FILES[CONFIG])}"'})
    await hub.download(download(path="layer.1"), Told())


@pytest.mark.parametrize("size", ["", "+5", " 5 5", "5.0", "1e3", "٣", "9" * 40])
async def test_what_is_no_size(server: HubServer, hub: HuggingFaceHub, size: str) -> None:
    server.publish("org/saes", FILES)
    server.fault("head", path="weights", headers={"X-Linked-Size": size.encode().decode("latin-1")})
    with pytest.raises(SAEDownloadError) as refused:
        await hub.download(download(path="layer.1"), Told())
    assert refused.value.fields["reason"] == "bad_size"
    assert not server.asked("store")


@pytest.mark.parametrize("location", ["http://[half", "http://127.0.0.1:port/x"])
async def test_a_redirect_without_an_address(server: HubServer, hub: HuggingFaceHub, location: str) -> None:
    server.publish("org/saes", FILES)
    server.fault("head", path="weights", location=location)
    with pytest.raises(SAEDownloadError) as refused:
        await hub.download(download(path="layer.1"), Told())
    assert refused.value.fields["reason"] == "redirect"
    assert len([each for each in server.asked("head") if "weights" in each.target]) == 1
    assert not server.asked("store")
