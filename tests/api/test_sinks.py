"""One rule about attention sinks over HTTP: left out unless told otherwise, and told where they were written to."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.api.text.replies import warnings
from sae_actor.domain.events import Receipt
from sae_actor.domain.refs import intervention_sha256
from sae_actor.ports import Finished

from .conftest import Running
from .text.test_routes import ASK, CHAT, chunks

pytestmark = pytest.mark.anyio

BELIEVER = {"feature": 3, "strength": 85}
WARNING = 'attention sinks were edited, at position 0: "exclude" does not name "sink"'
PATHS = {"/v1/completions": ASK, "/v1/chat/completions": CHAT}


async def say(service: Running, path: str = "/v1/completions", **own: Any) -> dict[str, Any]:
    answer = await service.client.post(path, json={**PATHS[path], "max_tokens": 4, "sae": own})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_however_it_is_asked_for_it_is_one_intervention(service: Running) -> None:
    """As a command, as a resource, of the request's own in both forms, with the default and with the default said."""
    sae_id = await service.ready()
    said = {**BELIEVER, "exclude": ["sink"]}
    digests, texts = set(), set()
    for edit in (BELIEVER, said):
        await service.command("Steer", sae_id=sae_id, features=[edit])
        told = [await say(service)]
        await service.client.put(f"/api/saes/{sae_id}/steering", json={"features": [edit]})
        told += [
            await say(service),
            await say(service, steering=[edit]),
            await say(service, interventions=[{"sae_id": sae_id, "steering": [edit]}]),
        ]
        digests |= {each["sae"]["intervention_sha256"] for each in told}
        texts |= {each["choices"][0]["text"] for each in told}
        for each in told:
            assert each["sae"]["interventions"][0]["steering"][0]["exclude"] == ["sink"]
            receipt = each["sae"]["receipt"]
            assert (receipt["tokens_excluded"], receipt["tokens_edited"]) == (1, receipt["tokens_prompt"] + 2)
            assert each["sae"]["warnings"] == []
    assert len(digests) == len(texts) == 1
    everywhere = await say(service, steering=[{**BELIEVER, "exclude": []}])
    assert everywhere["sae"]["intervention_sha256"] not in digests
    (active,) = service.actor.state.in_force
    assert {intervention_sha256((active,))} == digests


@pytest.mark.parametrize("path", list(PATHS))
async def test_an_answer_says_that_a_sink_was_edited(service: Running, path: str) -> None:
    sae_id = await service.ready()
    everywhere = {**BELIEVER, "exclude": []}
    own: dict[str, Any] = {"steering": [everywhere]}
    told = await say(service, path, **own)
    assert told["sae"]["warnings"] == [WARNING]
    body = {**PATHS[path], "max_tokens": 4, "sae": own}
    assert (await chunks(service, path, body))[-1]["sae"]["warnings"] == [WARNING]
    quiets: tuple[dict[str, Any], ...] = (
        {"steering": [{**everywhere, "positions": "generated"}]},
        {"steering": [{**everywhere, "positions": {"from": 1}}]},
        {"steering": [BELIEVER]},
        {"steering": []},
        {"baseline": True},
    )
    for quiet in quiets:
        assert (await say(service, path, **quiet))["sae"]["warnings"] == [], quiet
    await service.command("Steer", sae_id=sae_id, features=[everywhere])
    assert (await say(service, path))["sae"]["warnings"] == [WARNING]
    assert (await say(service, path, baseline=True))["sae"]["warnings"] == []


async def test_what_is_said_holds_whatever_else_is_left_out(service: Running) -> None:
    await service.ready()
    for exclude in ([], ["special"], ["template", "special"]):
        told = await say(service, steering=[{**BELIEVER, "exclude": exclude}])
        assert told["sae"]["warnings"] == [WARNING], exclude


@pytest.mark.parametrize(
    ("ranges", "told"),
    [
        (((0, 1), (4, 6)), "positions 0, 4–5"),
        (tuple((at, at + 1) for at in range(0, 32, 2)), f"positions {', '.join(map(str, range(0, 32, 2)))}"),
        (
            tuple((at, at + 2) for at in range(0, 9000, 3)),
            f"positions {', '.join(f'{at}–{at + 1}' for at in range(0, 48, 3))} and 5968 more",
        ),
    ],
)
def test_several_sinks_are_told_by_their_positions(ranges: tuple[tuple[int, int], ...], told: str) -> None:
    receipt = Receipt(tokens_prompt=9, tokens_generated=1, tokens_edited=9, tokens_excluded=0, mean_relative_norm=0.5)
    end = Finished(reason="length", receipt=receipt, token_ids=(1,), text="", edited_sinks=ranges)
    assert warnings(end) == [f'attention sinks were edited, at {told}: "exclude" does not name "sink"']


async def test_of_several_prompts_each_choice_tells_its_own(service: Running) -> None:
    await service.ready()
    own = {"steering": [{**BELIEVER, "exclude": [], "positions": {"tokens": [0]}}]}
    answer = await service.client.post("/v1/completions", json={**ASK, "prompt": ["ab", "cd"], "sae": own})
    assert [choice["sae"]["warnings"] for choice in answer.json()["choices"]] == [[WARNING]] * 2


async def test_attached_to_reconstruct(service: Running) -> None:
    sae_id = await service.ready()
    where = f"/api/saes/{sae_id}/attach"
    owns: tuple[dict[str, Any], ...] = ({}, {"steering": []}, {"steering": [BELIEVER]})
    for exclude, shown, excluded in (
        ({}, None, 1),
        ({"exclude": []}, [], 0),
        ({"exclude": ["special"]}, ["special"], 0),
    ):
        body = {"mode": "reconstruct", "replace": True, **exclude}
        assert (await service.client.post(where, json=body)).status_code == 200
        attachment = (await service.client.get("/api/saes/attachment")).json()
        assert (attachment["mode"], attachment["exclude"]) == ("reconstruct", shown)
        for own in owns:
            told = (await say(service, **own))["sae"]
            assert told["interventions"][0].get("exclude") == shown
            assert told["receipt"]["tokens_excluded"] == excluded
            assert told["warnings"] == ([] if excluded else [WARNING])
    started = [event["data"] for event in await service.events() if event["type"] == "GenerationStarted"]
    assert [each["intervention"][0]["exclude"] for each in started[::3]] == [None, [], ["special"]]
    assert {each["sink_window"] for each in started} == {512}


async def test_a_reconstruction_of_the_requests_own(service: Running) -> None:
    sae_id = await service.ready()
    for exclude, excluded in ((None, 1), ([], 0), (["sink"], 1)):
        one = {"sae_id": sae_id, "mode": "reconstruct", "steering": [BELIEVER], "exclude": exclude}
        told = (await say(service, interventions=[one]))["sae"]
        assert told["interventions"][0].get("exclude") == exclude
        assert told["receipt"]["tokens_excluded"] == excluded
        explained = (await service.client.get(f"/api/generations/{told['generation_id']}")).json()
        assert explained["intervention"][0]["exclude"] == exclude
        assert explained["digest"]["agrees"]
        assert explained["sink_window"] == 512


async def test_only_a_reconstruction_is_told_what_to_pass(service: Running) -> None:
    sae_id = await service.ready()
    refused = await service.client.post(f"/api/saes/{sae_id}/attach", json={"exclude": [], "replace": True})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    own = {"interventions": [{"sae_id": sae_id, "exclude": []}]}
    asked = await service.client.post("/v1/completions", json={**ASK, "sae": own})
    assert asked.status_code == 400
    assert "mode steer" in asked.json()["error"]["message"]


async def test_stopping_at_a_feature(service: Running) -> None:
    await service.ready()
    for asked, recorded in (({}, ["sink"]), ({"exclude": []}, []), ({"exclude": ["special"]}, ["special"])):
        await say(service, stop_when={"feature": 1, "above": 1e6, **asked})
        started = (await service.events())[-2]["data"]
        assert started["stop_when"]["exclude"] == recorded
