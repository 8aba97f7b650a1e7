"""Everything out of range, of the wrong type, unknown or malformed: 400 or 422 as problem+json, and no trace."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sae_actor.api.requests import decoded
from sae_actor.errors import BadRequestError

from .conftest import Running

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


async def refused(service: Running, path: str, body: bytes, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Send raw bytes; a problem comes back, and the log has not grown by anything but a CommandRejected."""
    before = await service.events()
    answer = await service.client.post(path, content=body, headers=headers if headers is not None else JSON)
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    assert {"type", "title", "detail", "code"} <= problem.keys()
    grown = (await service.events())[len(before) :]
    assert all(event["type"] == "CommandRejected" for event in grown)
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xef\xbb\xbf{}", b'{"type":"Detach","sae_id":"\xff"}', b"nonsense",
        b'{"type":"Nothing"}', b"{}", b'{"type":"UnloadModel","more":1}', b'{"type":"Detach"}',
        b'{"type":"Detach","sae_id":"a","sae_id":"b"}', b"[" * 9000, b'{"a":' * 9000,
        b'{"type":"Detach","sae_id":""}',
        b'{"type":"Detach","sae_id":"../x"}',
        b'{"type":"Detach","sae_id":"a\\u0000"}',
        b'{"type":"Detach","sae_id":"\\ud800"}', '{"type":"Detach","sae_id":"é"}'.encode(),
        b'{"type":"Detach","sae_id":1}', b'{"type":"Monitor","sae_id":"a","enabled":1}',
    ],
)  # fmt: skip
async def test_malformed_commands(service: Running, body: bytes) -> None:
    assert (await refused(service, "/api/commands", body))["status"] == 400


@pytest.mark.parametrize("layer", ["-1", "1.0", "true", '"1"', "1099511627776", "9223372036854775808", "NaN", "1e3"])
async def test_layers_that_no_model_has(service: Running, layer: str) -> None:
    body = f'{{"type":"Attach","sae_id":"a","layer":{layer}}}'.encode()
    assert (await refused(service, "/api/commands", body))["status"] == 400


@pytest.mark.parametrize(
    "strength",
    ["NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"inf"', "1e308", "1000001", "-1000001", "true", "null", "[]"],
)
async def test_strengths_out_of_range(service: Running, strength: str) -> None:
    sae_id = await service.ready()
    body = f'{{"type":"Steer","sae_id":"{sae_id}","features":[{{"feature":1,"strength":{strength}}}]}}'
    assert (await refused(service, "/api/commands", body.encode()))["status"] == 400


async def test_minus_zero_is_a_strength(service: Running) -> None:
    sae_id = await service.ready()
    body = f'{{"type":"Steer","sae_id":"{sae_id}","features":[{{"feature":1,"strength":-0.0}}]}}'
    answer = await service.client.post("/api/commands", content=body.encode(), headers=JSON)
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("edit", "status", "code"),
    [
        ({"feature": 32, "strength": 1}, 422, "feature_out_of_range"),
        ({"feature": 2**40, "strength": 1}, 400, "bad_request"),
        ({"feature": -1, "strength": 1}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "method": "magic"}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "positions": "some"}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "positions": {}}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "positions": {"from": 3, "to": 3}}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "positions": {"role": "wizard"}}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "exclude": ["first"]}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "unit": "max"}, 422, "sae_unsupported"),
        ({"feature": 1, "strength": 1, "when": {"feature": 2}}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "when": {"feature": 99, "above": 0}}, 422, "feature_out_of_range"),
        ({"feature": 1, "strength": 1, "sae_id": "another"}, 400, "bad_request"),
        ({"feature": 1}, 400, "bad_request"),
        ({"feature": 1, "strength": 1, "extra": 1}, 400, "bad_request"),
    ],
)
async def test_edits_that_cannot_be(service: Running, edit: dict[str, Any], status: int, code: str) -> None:
    sae_id = await service.ready()
    body = json.dumps({"type": "Steer", "sae_id": sae_id, "features": [edit]}).encode()
    problem = await refused(service, "/api/commands", body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert (await service.client.get(f"/api/saes/{sae_id}/steering")).json()["features"] == []


async def test_contradictions_and_too_many(service: Running) -> None:
    sae_id = await service.ready()
    twice = [{"feature": 1, "strength": 1, "method": "set"}, {"feature": 1, "strength": 2, "method": "cap"}]
    problem = await refused(
        service, "/api/commands", json.dumps({"type": "Steer", "sae_id": sae_id, "features": twice}).encode()
    )
    assert (problem["status"], problem["code"]) == (422, "conflicting_edits")
    many = [{"feature": 0, "strength": 1}] * 257
    problem = await refused(
        service, "/api/commands", json.dumps({"type": "Steer", "sae_id": sae_id, "features": many}).encode()
    )
    assert problem["status"] == 400


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/msgpack", "application/x-msgpack", ""]
)
async def test_other_media_types(service: Running, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    problem = await refused(service, "/api/commands", b'{"type":"UnloadModel"}', headers=headers)
    assert (problem["status"], problem["code"]) == (415, "unsupported_media_type")


async def test_bodies_that_are_too_large(service: Running) -> None:
    problem = await refused(service, "/api/commands", b" " * (5 * 1024 * 1024))
    assert (problem["status"], problem["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "fields",
    [
        {"repository_id": "../etc"}, {"repository_id": "a/b/c"}, {"repository_id": "a/b", "path": "../x"},
        {"repository_id": "a/b", "path": "/etc/passwd"}, {"repository_id": "a/b", "path": "a\\..\\b"},
        {"repository_id": "a/b", "path": "a//b"}, {"repository_id": "a/b", "revision": "../x"},
        {"repository_id": "a/b", "revision": "refs/../x"}, {"repository_id": "a--b/c"}, {"repository_id": ""},
        {"repository_id": "a/b", "path": ""}, {"repository_id": "a/b", "path": "x\n"}, {"repository_id": "é/b"},
        {"repository_id": "a/b", "force": 1}, {"repository_id": "a/b", "type": "Download"},
    ],
)  # fmt: skip
async def test_downloads_that_name_nothing(service: Running, fields: dict[str, Any]) -> None:
    assert (await refused(service, "/api/saes/download", json.dumps(fields).encode()))["status"] == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/log?after=-1", 400), ("/api/log?after=x", 400), ("/api/log?limit=0", 400), ("/api/log?limit=1.5", 400),
        ("/api/log?types=Nothing", 400), ("/api/log?types=", 400), ("/api/events?after=abc", 400),
        ("/api/state?at=-1", 400), ("/api/state?at=999", 404), ("/api/nothing", 404), ("/api/saes/none", 404),
        ("/api/saes/none/steering", 404), ("/api/saes/none/compatibility", 404), ("/api/saes/%2e%2e%2f", 404),
        ("/api/catalog", 400), ("/api/catalog?repository_id=..%2Fx", 400),
    ],
)  # fmt: skip
async def test_reading_what_is_not_there(service: Running, path: str, status: int) -> None:
    answer = await service.client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_wrong_methods(service: Running) -> None:
    for method, path in (("DELETE", "/api/commands"), ("POST", "/api/model"), ("PUT", "/api/saes")):
        answer = await service.client.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")


async def test_twins_in_every_writing(service: Running) -> None:
    """One key twice in one object, by escapes too, and in bodies that are decoded beside the loop."""
    key, many = b'{"type":"UnloadModel","a":%s}', b",".join(b'"%d":[1,{"a":":"}]' % n for n in range(3000))
    for inside, twice in (
        (b'{"b":1,"\\u0062":2}', True), (b'{"b":1,"b" :2}', True), (b'[{"b":1},{"b":2}]', False),
        (b'{"b":{"b":{"b":1}},"c":["b","b"]}', False), (b'{"b":"\\"b\\":","c":"{\\"b\\":1,\\"b\\":2}"}', False),
        (b'{"\\"":1,"\\u0022":2}', True), (b'{"\\\\":1,"\\"":2}', False), (b'{"b":1,"c":{"d":1,"d":2}}', True),
        (b"{%s}" % many, False), (b'{%s,"2999":1}' % many, True), (b'{"e\\u0301":1,"\\u00e9":2}', False),
    ):  # fmt: skip
        if twice:
            with pytest.raises(BadRequestError, match="more than once"):
                decoded(key % inside, dict[str, Any])
        else:
            assert decoded(key % inside, dict[str, Any])["type"] == "UnloadModel"
        problem = await refused(service, "/api/commands", key % inside)
        assert problem["status"] == 400
