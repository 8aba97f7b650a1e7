"""Answers found by their prompt: through its digest, tokenized as the routes do it."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.api.text.search import routes, scan

from ..conftest import Running

pytestmark = pytest.mark.anyio
Found = list[dict[str, Any]]


async def told(service: Running, prompt: Any, **more: Any) -> dict[str, Any]:
    """Make a text of a prompt or of messages; the object `sae` of its answer."""
    tag = more.pop("tag", None)
    kind, path = ("messages", "chat/completions") if _is_chat(prompt) else ("prompt", "completions")
    body = {"model": "default", kind: prompt, "max_tokens": 2, "sae": {"tag": tag} if tag else {}, **more}
    answer = await service.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made["sae"] if "sae" in made else made["choices"][0]["sae"]  # type: ignore[no-any-return]


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], dict)


async def search(service: Running, **body: Any) -> dict[str, Any]:
    answer = await service.client.post("/api/generations/search", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [each["generation_id"] for each in found["generations"]]


async def test_a_prompt_is_found_however_it_is_given(service: Running) -> None:
    await service.ready()
    first = await told(service, "Once upon", tag="a")
    await told(service, "Once upon a")
    second = await told(service, "Once upon", temperature=1.0, seed=7)
    found = await search(service, prompt="Once upon")
    assert ids(found) == [first["generation_id"], second["generation_id"]]
    view = (await service.client.get(f"/api/generations/{first['generation_id']}")).json()
    same = ("generation_id", "position", "principal", "tag", "finish_reason", "intervention_sha256", "prompt_sha256",
            "salt")  # fmt: skip
    assert {name: found["generations"][0][name] for name in same} == {name: view[name] for name in same}
    assert found["generations"][0]["finished_position"] == view["finished"]["position"]
    assert (found["searched"], found["complete"]) == (3, True)
    tokens = (await service.client.post("/tokenize", json={"prompt": "Once upon"})).json()["tokens"]
    assert found["tokens"] == len(tokens)
    assert (await search(service, token_ids=tokens))["generations"] == found["generations"]
    assert ids(await search(service, prompt="Once")) == []


async def test_a_chat(service: Running) -> None:
    await service.ready()
    messages = [{"role": "user", "content": "Hi"}]
    made = await told(service, messages)
    await told(service, "Hi")
    assert ids(await search(service, messages=messages)) == [made["generation_id"]]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "me"}]
    assert ids(await search(service, messages=parts)) == [made["generation_id"]]
    assert ids(await search(service, messages=messages, add_generation_prompt=False)) == []


async def test_options_of_its_tokenization(service: Running) -> None:
    await service.ready()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    options: list[dict[str, Any]] = [{}, {"continue_final_message": True}, {"add_generation_prompt": False}]
    made = [(await told(service, messages, **more))["generation_id"] for more in options]
    assert [ids(await search(service, messages=messages, **more)) for more in options] == [[each] for each in made]


async def test_only_a_tag_only_after(service: Running) -> None:
    await service.ready()
    made = [await told(service, "Once", tag=tag) for tag in ("a", "b", "a")]
    names = [each["generation_id"] for each in made]
    assert ids(await search(service, prompt="Once", tag="a")) == [names[0], names[2]]
    assert ids(await search(service, prompt="Once", tag="c")) == []
    found = await search(service, prompt="Once", after=made[0]["position"])
    assert (ids(found), found["complete"]) == (names[1:], True)
    assert ids(await search(service, prompt="Once", after=made[-1]["position"])) == []


async def test_the_newest_are_looked_at(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.ready()
    names = [(await told(service, "Once"))["generation_id"] for _ in range(5)]
    monkeypatch.setattr(scan, "WINDOW", 1)
    assert ids(await search(service, prompt="Once")) == names
    monkeypatch.setattr(scan, "NEWEST", 3)
    found = await search(service, prompt="Once")
    assert (ids(found), found["searched"], found["complete"]) == (names[2:], 3, False)
    monkeypatch.undo()
    monkeypatch.setattr(routes, "MOST_FOUND", 2)
    found = await search(service, prompt="Once")
    assert (ids(found), found["complete"]) == (names[3:], False)


async def test_what_was_erased_is_not_found(service: Running) -> None:
    await service.ready()
    made, other = await told(service, "Once"), await told(service, "Once", tag="t")
    rows = service.log._rows
    whole = list(rows)
    end = next(at for at, row in enumerate(rows) if row.type == "GenerationFinished")
    for at in (end, other["position"] - 1):
        rows[at] = rows[at]._replace(data=None, salt=None)
    found = await search(service, prompt="Once")
    ((view,), searched) = found["generations"], found["searched"]
    assert (view["generation_id"], view["tag"], searched) == (other["generation_id"], None, 2)
    assert ids(await search(service, prompt="Once", tag="t")) == []
    rows[:] = whole
    assert ids(await search(service, prompt="Once")) == [made["generation_id"], other["generation_id"]]


async def test_without_a_model_tokens_alone_can_be_looked_for(service: Running) -> None:
    answer = await service.client.post("/api/generations/search", json={"prompt": "Once"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")
    assert await search(service, token_ids=[1, 2]) == {"generations": [], "tokens": 2, "searched": 0, "complete": True}


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": "a", "token_ids": [1]}, {"prompt": 1}, {"token_ids": [-1]}, {"prompt": "a", "after": -1},
     {"prompt": "a", "what": 1}, {"messages": []}],
)  # fmt: skip
async def test_what_is_malformed(service: Running, body: dict[str, Any]) -> None:
    answer = await service.client.post("/api/generations/search", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
