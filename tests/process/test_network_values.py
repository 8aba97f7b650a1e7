"""Rows 37 to 41: numbers and names that a client can send to a real service process.

row  test
37   test_row_37_numbers_that_are_none
38   test_row_38_integers_that_are_none
39   test_row_39_features_and_layers_that_are_not_there
40   test_row_40_names_beyond_ascii
41   test_row_41_paths_that_lead_elsewhere
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.api.raw import parsed
from tests.process.network import COMMANDS, D_SAE, LAYERS, TOKEN, connected, head, refused, to_the_end

from .harness import Process
from .test_kill import SAE_ID

# — numbers —


def _edits(strength: str) -> list[tuple[str, str, str]]:
    """Everywhere that an edit can be sent."""
    edits = f'[{{"feature":1,"strength":{strength}}}]'
    return [
        ("POST", COMMANDS, f'{{"type":"Steer","sae_id":"{SAE_ID}","features":{edits}}}'),
        ("PUT", f"/api/saes/{SAE_ID}/steering", f'{{"features":{edits}}}'),
        ("POST", "/v1/completions", f'{{"prompt":"a","max_tokens":1,"sae":{{"steering":{edits}}}}}'),
        ("POST", "/api/compare", f'{{"prompt":"a","max_tokens":1,"sae":{{"steering":{edits}}}}}'),
    ]


def test_row_37_numbers_that_are_none(service: Process) -> None:
    for strength in ("NaN", "Infinity", "-Infinity", "nan", "inf", "1e999", "-1e999", '"nan"', '"inf"', '"1"', "1e308",
                     "1000000.1", "-1000001", "true", "null", "[]", "{}", "0x10", "1_0", ".5", "+1", "01"):  # fmt: skip
        for method, path, body in _edits(strength):
            refused(service, 400, body.encode(), path, method)
    for field in ("temperature", "top_p"):
        for value in ("NaN", "1e999", '"1"', "-0.1", "true", "1e308"):
            refused(service, 400, f'{{"prompt":"a","{field}":{value}}}'.encode(), "/v1/completions")
    for method, path, body in _edits("-0.0"):
        answer = service.client.request(method, path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 202), answer.text


BIG = ("9" * 5000, str(2**63), str(2**64), "-1", "1.0", "1e3", "true", '"1"', "[1]")


def test_row_38_integers_that_are_none(service: Process) -> None:
    for value in BIG:
        for body in (f'{{"type":"Attach","sae_id":"{SAE_ID}","layer":{value}}}',
                     f'{{"type":"Monitor","sae_id":"{SAE_ID}","enabled":true,"top_k":{value}}}',
                     f'{{"type":"Steer","sae_id":"{SAE_ID}","features":[{{"feature":{value},"strength":1}}]}}',
                     ):  # fmt: skip
            refused(service, 400, body.encode())
        for field in ("max_tokens", "n", "logprobs"):
            refused(service, 400, f'{{"prompt":"a","{field}":{value}}}'.encode(), "/v1/completions")
        refused(service, 400, f'{{"prompt":"a","top_k":{value}}}'.encode(), "/api/activations")
        if value != "[1]":
            for name in ("after", "limit"):
                answer = service.client.get("/api/log", params={name: value.strip('"')})
                allowed = (200, 400) if value in ('"1"', str(2**63)) else (400,)
                assert answer.status_code in allowed, (name, value[:30], answer.text)
    for value in ("1.0", "true", '"1"', str(2**64), "9" * 5000):
        refused(service, 400, f'{{"prompt":"a","seed":{value}}}'.encode(), "/v1/completions")


def test_row_39_features_and_layers_that_are_not_there(service: Process) -> None:
    """422 where this SAE or this model says no, 400 where none could say yes; nothing changes."""
    before = service.client.get(f"/api/saes/{SAE_ID}/steering").json()
    attached = service.client.get("/api/saes/attachment").json()

    def steer(*features: int, method: str = "add") -> dict[str, Any]:
        edits = [{"feature": feature, "strength": 1.0, "method": method} for feature in features]
        return {"type": "Steer", "sae_id": SAE_ID, "features": edits}

    for feature in (D_SAE, D_SAE + 1, 2**31 - 1):
        assert refused(service, 422, steer(feature))["code"] == "feature_out_of_range"
        body = {"prompt": "a", "features": [feature]}
        assert refused(service, 422, body, "/api/activations")["code"] == "feature_out_of_range"
    for feature in (-1, 2**40):
        refused(service, 400, steer(feature))
        refused(service, 400, {"prompt": "a", "features": [feature]}, "/api/activations")
    for method in ("add", "set", "cap"):
        assert refused(service, 422, steer(5, 5, method=method))["code"] == "conflicting_edits"
    for layer, status in ((LAYERS, 422), (-1, 400), (2**40, 400)):
        refused(service, status, {"type": "Attach", "sae_id": SAE_ID, "layer": layer, "replace": True})
        refused(service, status, {"layer": layer, "replace": True}, f"/api/saes/{SAE_ID}/attach")
    assert service.client.get(f"/api/saes/{SAE_ID}/steering").json() == before
    assert service.client.get("/api/saes/attachment").json() == attached


# — names —

NAMES = ("caf\u00e9", "cafe\u0301", "\ud800", "a\x00b", "a\u202eb", "x" * 10_240, "\U0001f600", "a\r\nINJECTED: 1",
         "a\u2028b", "\u0661", "a\tb", "a\x7fb", "\ufeffa", "a\u200bb")  # fmt: skip


def test_row_40_names_beyond_ascii(service: Process) -> None:
    """Ids and places are ASCII, so there is one form of each; no name is a path, or a line in anybody's log."""

    def sent(**fields: Any) -> bytes:
        return json.dumps(fields).encode()  # a lone surrogate as an escape, as a client would write it

    for name in NAMES:
        for type_ in ("Detach", "Attach", "Delete", "CancelDownload"):
            refused(service, 400, sent(type=type_, sae_id=name))
        for fields in ({"repository_id": f"org/{name}"}, {"repository_id": "org/a", "revision": name},
                       {"repository_id": "org/a", "path": f"b/{name}"}):  # fmt: skip
            refused(service, 400, sent(type="Download", **fields))
    for name in ("", " ", "a/b", "a b", "a:b", "~"):
        refused(service, 400, sent(type="Detach", sae_id=name))
    for name in ("con", "a.", ".", "..", "-"):
        refused(service, 404, sent(type="Detach", sae_id=name))
    for key in ("caf\u00e9", "a b", "a\tb", "x" * 129):
        body = b'{"type":"UnloadModel"}'  # 409 while an SAE is attached
        lines = (f"Content-Length: {len(body)}", f"Idempotency-Key: {key}", "Connection: close")
        with connected(service) as raw:
            raw.sendall(head(COMMANDS, *lines) + body)
            assert parsed(to_the_end(raw)).status == 400, key
    for tag, status in (("a\r\nINJECTED: 1", 400), ("\ud800", 400), ("x" * 129, 400), ("caf\u00e9 \U0001f600", 200)):
        answer = service.client.post("/v1/completions", content=sent(prompt="a", max_tokens=1, sae={"tag": tag}),
                                     headers={"content-type": "application/json"})  # fmt: skip
        assert answer.status_code == status, (tag, answer.text)
    for path in ("/api/saes/%00", "/api/saes/%0d%0aINJECTED:%201", "/api/saes/%e9", "/api/saes/%ff%fe", "/api/saes/con",
                 "/api/commands/%0aINJECTED", "/api/generations/%F0%9F%98%80", "/v1/models/%0aINJECTED"):  # fmt: skip
        answer = service.client.get(path)
        assert answer.status_code in (400, 404), (path, answer.text)
        assert "INJECTED: 1" not in answer.headers
    assert "INJECTED" not in service.stderr.read_text()


CANARY = "the canary was read"


def test_row_41_paths_that_lead_elsewhere(service: Process, tmp_path: Path) -> None:
    data = service.stderr.parent / "data"
    outside = service.stderr.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "cfg.json").write_text(CANARY)
    (outside / "sae_weights.safetensors").write_text(CANARY)
    before = {path: path.stat().st_mtime_ns for path in sorted(outside.rglob("*"))}
    ways = ("../outside", "..\\outside", str(outside), "%2e%2e%2foutside", "a/../../outside", "./../outside",
            "..%2foutside", "file:///etc/passwd", "a//b", "/etc/passwd",
            "\\\\host\\share", "C:\\x")  # fmt: skip
    for way in ways:
        refused(service, 400, {"type": "Download", "repository_id": way})
        refused(service, 400, {"type": "Download", "repository_id": f"org/{way}"})
        refused(service, 400, {"type": "Download", "repository_id": "org/a", "revision": way})
        if "%" not in way:
            refused(service, 400, {"type": "Download", "repository_id": "org/a", "path": way})
        refused(service, 400, {"type": "Attach", "sae_id": way})
    link = tmp_path / "link"
    link.symlink_to(outside)
    for way in (str(outside), str(link), "../outside", "/", "/etc", str(data)):
        problem = refused(service, 403, {"type": "Import", "path": way})
        assert CANARY not in json.dumps(problem)
    for way in ("/../outside/cfg.json", "/..%2foutside/cfg.json", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
                "/page.js/../../config.py", "/page.js%2f..%2f..%2fconfig.py", "/..\\..\\config.py", "/page.js\x00.html",
                "/api/saes/..%2f..%2f..%2foutside", "/api/saes/%2e%2e%2f", 
                "/v1/models/..%2f..%2fetc%2fpasswd"):  # fmt: skip
        with connected(service) as raw:
            request = f"GET {way} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close"
            raw.sendall(request.encode("latin-1") + b"\r\n\r\n")
            answer = parsed(to_the_end(raw))
        assert answer.status in (400, 404), (way, answer)
        assert CANARY.encode() not in answer.body
        assert b"root:" not in answer.body
    assert before == {path: path.stat().st_mtime_ns for path in sorted(outside.rglob("*"))}
    assert not any(CANARY in path.read_text(errors="replace") for path in data.rglob("*.json"))
