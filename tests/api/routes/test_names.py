"""SAEs by the names that SAELens and Neuronpedia have for them: the edge finds the place, the log has both."""

from __future__ import annotations

import pytest

from sae_actor.domain.weights import sae_id_of
from sae_actor.ports import NamedSae
from tests.fakes.hub import FakeHub

from ..conftest import REPOSITORY, serving

pytestmark = pytest.mark.anyio

NAME = "saelens:tiny-res/layer.1"
SAE_ID = sae_id_of(REPOSITORY, "layer.1", "main")


def named() -> FakeHub:
    hub = FakeHub()
    for path in ("layer.1", "layer.2", "elsewhere"):
        hub.names.append(NamedSae(named_as=f"saelens:tiny-res/{path}", repository_id=REPOSITORY, path=path))
    hub.names.append(NamedSae(named_as="neuronpedia:tiny/1-res", repository_id=REPOSITORY, path="layer.1"))
    return hub


@pytest.mark.parametrize("route", ["commands", "saes/download"])
@pytest.mark.parametrize("name", [NAME, "neuronpedia:tiny/1-res"])
async def test_a_download_by_name(name: str, route: str) -> None:
    async with serving(hub=named()) as service:
        kind = {"type": "Download"} if route == "commands" else {}
        answer = await service.client.post(
            f"/api/{route}", json={**kind, "repository_id": name}, headers={"Prefer": "wait=20"}
        )
        assert answer.status_code == 200, answer.text
        requested = answer.json()["events"][0]["data"]
        assert {key: requested[key] for key in ("sae_id", "repository_id", "path", "revision", "named_as")} == {
            "sae_id": SAE_ID, "repository_id": REPOSITORY, "path": "layer.1", "revision": "main", "named_as": name,
        }  # fmt: skip
        shown = (await service.client.get(f"/api/saes/{SAE_ID}")).json()
        assert (shown["named_as"], shown["repository_id"], shown["path"]) == (name, REPOSITORY, "layer.1")


async def test_what_a_name_stands_for_is_in_the_catalog() -> None:
    async with serving(hub=named()) as service:
        (entry,) = (await service.client.get("/api/catalog", params={"repository_id": NAME})).json()
        whole = (await service.client.get("/api/catalog", params={"repository_id": "saelens:tiny-res"})).json()
        plain = (await service.client.get("/api/catalog", params={"repository_id": REPOSITORY})).json()
    told = ("path", "repository_id", "revision", "named_as")
    assert [entry[each] for each in told] == ["layer.1", REPOSITORY, "main", NAME]
    assert [each["named_as"] for each in whole] == [NAME, "saelens:tiny-res/layer.2"]
    assert all("named_as" not in each for each in plain)


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        ({"repository_id": "saelens:tiny-res/none"}, 404, "not_found", "there is no saelens:tiny-res/none"),
        ({"repository_id": "saelens:tiny-res"}, 400, "bad_request", "stands for 3 SAEs: name one, such as saelens:"),
        ({"repository_id": NAME, "path": "layer.1"}, 422, "sae_ambiguous", "leave path out"),
        ({"repository_id": "other:tiny-res/layer.1"}, 400, "bad_request", "repository_id"),
        ({"repository_id": REPOSITORY, "path": "layer.1", "named_as": NAME}, 400, "bad_request", "leave it out"),
    ],
)
async def test_refusals(body: dict[str, str], status: int, code: str, told: str) -> None:
    async with serving(hub=named()) as service:
        answer = await service.client.post("/api/commands", json={"type": "Download", **body})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert told in answer.json()["detail"]
        assert service.actor.state.saes == {}


async def test_a_place_without_a_known_format() -> None:
    async with serving(hub=named()) as other:
        answer = await other.client.get("/api/catalog", params={"repository_id": "saelens:tiny-res/elsewhere"})
    assert (answer.status_code, answer.json()["code"]) == (422, "sae_unsupported")
    assert f"saelens:tiny-res/elsewhere is {REPOSITORY} at elsewhere" in answer.json()["detail"]
