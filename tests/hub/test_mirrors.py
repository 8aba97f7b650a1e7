"""Row 86: behind a mirror only the mirror is asked, whatever its answers name."""

from __future__ import annotations

import pytest

from sae_actor.errors import SAEDownloadError
from sae_actor.hub.child.endpoint import Endpoint
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files
from tests.hub.conftest import TOKEN, MakeHub, Told, download

HUB = "https://huggingface.co"
OTHERS = [HUB, "https://hub.internal.example:8443/artifactory/api/huggingfaceml/models", "http://mirror.example"]
"""What the `Link` headers of mirrors name: the hub, the mirror's own upstream with its path, another name of itself."""
MANY = {**sae_files("layer.1"), **{f"notes/{n}.md": b"words" for n in range(1500)}}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", "/mirrors/hub"])
@pytest.mark.parametrize("named", OTHERS)
async def test_row_86_the_catalog_of_more_than_a_page_stays_on_the_mirror(
    server: HubServer, make_hub: MakeHub, named: str, path: str
) -> None:
    server.mirror(named, path)
    server.publish("org/many", MANY, token=TOKEN)
    (entry,) = await make_hub().catalog("org/many")
    assert (entry.path, entry.d_in) == ("layer.1", 8)
    pages = server.asked("tree")
    assert len(pages) == 2
    assert all(each.target.startswith(f"{path}/api/models/org/many/tree/") for each in pages)
    assert all(each.headers["authorization"] == f"Bearer {TOKEN}" for each in server.asked()), "only the mirror has it"
    assert not server.asked("other")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", "/mirrors/hub"])
@pytest.mark.parametrize("named", OTHERS[:2])
async def test_row_86_a_download_stays_on_the_mirror_and_its_files_may_lie_elsewhere(
    server: HubServer, make_hub: MakeHub, named: str, path: str
) -> None:
    server.mirror(named, path)
    server.publish("org/saes", sae_files("layer.1"), token=TOKEN)
    found = await make_hub().download(download(path="layer.1"), Told())
    assert found.sae.d_sae == 32
    assert len(server.asked("cache")) >= 2, "the head and the body of cfg.json"
    assert all(TOKEN not in str(each.headers) for each in server.asked("store"))
    assert len(server.asked("store")) == 1
    assert not server.asked("other")


@pytest.mark.anyio
async def test_a_repository_that_was_renamed_is_followed_on_the_mirror(server: HubServer, make_hub: MakeHub) -> None:
    server.mirror()
    server.publish("org/new", sae_files("layer.1"))
    server.publish("org/old", sae_files("layer.2"))
    server.fault("info", path="org/old", location=f"{HUB}/api/models/org/new/revision/main?expand=sha")
    server.fault("tree", path="org/old", location="/api/models/org/new/tree/main?recursive=true")
    entries = await make_hub().catalog("org/old")
    assert [entry.path for entry in entries] == ["layer.1"]


@pytest.mark.anyio
async def test_a_mirror_that_sends_to_the_hub_for_what_it_was_asked_is_not_followed_there(
    server: HubServer, make_hub: MakeHub
) -> None:
    server.publish("org/saes", sae_files())
    server.fault("info", location=f"{HUB}/api/models/org/saes/revision/main?expand=sha")
    with pytest.raises(SAEDownloadError, match="redirects to huggingface") as refused:
        await make_hub().catalog("org/saes")
    assert refused.value.fields["reason"] == "redirect"
    assert len(server.asked("info")) == 1


@pytest.mark.anyio
async def test_a_next_page_without_an_address_is_refused(server: HubServer, make_hub: MakeHub) -> None:
    server.publish("org/saes", sae_files())
    server.fault("tree", headers={"Link": '<http://[half/api/models/x>; rel="next"'})
    with pytest.raises(SAEDownloadError) as refused:
        await make_hub().catalog("org/saes")
    assert refused.value.fields["reason"] == "protocol"


ASKED = "https://mirror.example/hf/api/models/org/saes/tree/main?recursive=true"


@pytest.mark.parametrize(
    ("link", "page"),
    [
        ("https://huggingface.co/api/models/org/saes/tree/main?cursor=2", "/api/models/org/saes/tree/main?cursor=2"),
        ("/api/models/org/saes/tree/main?cursor=2", "/api/models/org/saes/tree/main?cursor=2"),
        ("?cursor=2", "/api/models/org/saes/tree/main?cursor=2"),
        ("http://mirror.example/hf/api/models/o/s/tree/m/a%2Fb?cursor=2", "/api/models/o/s/tree/m/a%2Fb?cursor=2"),
        ("https://mirror.example:8443/api/models/o/s/tree/m?cursor=2", "/api/models/o/s/tree/m?cursor=2"),
        ("//evil.example/page?cursor=2", "/page?cursor=2"),
    ],
)
def test_every_next_page_is_on_the_endpoint(link: str, page: str) -> None:
    assert Endpoint("https://mirror.example/hf/").page(ASKED, link) == f"https://mirror.example/hf{page}"


@pytest.mark.parametrize(
    ("endpoint", "location", "target"),
    [
        ("https://mirror.example", f"{HUB}/o/s/resolve/main/cfg.json?x=1", "https://mirror.example/o/s/resolve/main/cfg.json?x=1"),
        ("https://mirror.example", "https://hf.co/api/models/o/s", "https://mirror.example/api/models/o/s"),
        ("https://mirror.example", "http://mirror.example/api/models/o/s", "https://mirror.example/api/models/o/s"),
        ("https://mirror.example/hf", "/o/s/resolve/main/cfg.json", "https://mirror.example/hf/o/s/resolve/main/cfg.json"),
        ("https://mirror.example/hf", "/store/1234", "https://mirror.example/store/1234"),
        ("https://mirror.example", "https://cdn-lfs.huggingface.co/x?S=1", "https://cdn-lfs.huggingface.co/x?S=1"),
        ("https://mirror.example", "https://cas-bridge.xethub.hf.co/x", "https://cas-bridge.xethub.hf.co/x"),
        (HUB, "https://hf.co/api/models/o/s", "https://hf.co/api/models/o/s"),
        ("https://hf.co", f"{HUB}/o/s/resolve/main/cfg.json", f"{HUB}/o/s/resolve/main/cfg.json"),
        (HUB, "/api/resolve-cache/models/o/s/1/cfg.json", f"{HUB}/api/resolve-cache/models/o/s/1/cfg.json"),
    ],
)  # fmt: skip
def test_redirects_of_a_mirror_to_the_hub_are_the_mirrors_and_those_to_files_are_not(
    endpoint: str, location: str, target: str
) -> None:
    assert Endpoint(endpoint).redirect(f"{endpoint}/o/s/resolve/main/x", location) == target
