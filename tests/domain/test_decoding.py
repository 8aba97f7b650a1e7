"""Commands as they come over HTTP: what is read, and what is not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from sae_actor.domain.commands import AnyCommand, Attach, Command, Download, LoadModel, Steer
from sae_actor.domain.refs import HookPoint, Span
from sae_actor.domain.weights import import_id_of, sae_id_of

DECODER = msgspec.json.Decoder(AnyCommand)

GOOD: list[dict[str, Any]] = [
    {"type": "LoadModel", "model": "org/tiny"},
    {"type": "LoadModel", "model": "/a local/path é", "revision": "v1.0", "dtype": "bfloat16", "device": "cuda:1"},
    {"type": "UnloadModel"},
    {"type": "Download", "repository_id": "org/saes"},
    {
        "type": "Download",
        "repository_id": "gpt2",
        "revision": "refs/pr/1",
        "path": "layer_1/w=16k, l0 9",
        "force": True,
    },
    {"type": "CancelDownload", "sae_id": "a-1.b_2"},
    {"type": "Import", "path": "/saes/demo"},
    {"type": "Attach", "sae_id": "a"},
    {"type": "Attach", "sae_id": "a", "layer": 0, "mode": "reconstruct", "dtype": "bfloat16", "replace": True},
    {"type": "Attach", "sae_id": "a", "hook_point": {"kind": "mlp_out", "layer": 4095}},
    {"type": "Detach", "sae_id": "a"},
    {"type": "Delete", "sae_id": "a"},
    {"type": "Steer", "sae_id": "a", "features": []},
    {"type": "Monitor", "sae_id": "a", "enabled": True, "features": [1, 2], "top_k": 3},
    {"type": "SavePreset", "name": "calm", "interventions": []},
    {
        "type": "SavePreset",
        "name": "a.b_c-9",
        "description": "less of it",
        "interventions": [{"sae_id": "a", "mode": "reconstruct", "steering": [], "exclude": []}],
    },
    {"type": "DeletePreset", "name": "calm"},
]


@pytest.mark.parametrize("body", GOOD, ids=lambda body: str(body["type"]))
def test_every_command_is_read_and_written_back(body: dict[str, Any]) -> None:
    command = DECODER.decode(json.dumps(body))
    assert isinstance(command, Command)
    assert command.type_name == body["type"]
    written = msgspec.json.encode(command)
    assert DECODER.decode(written) == command
    assert msgspec.json.decode(written).items() >= body.items()


def test_every_command_has_an_example() -> None:
    # KeepVectors is sent by the routes that write the vectors first.
    assert {body["type"] for body in GOOD} == {cls.__name__ for cls in Command.__subclasses__()} - {"KeepVectors"}


def test_vectors_are_not_kept_by_a_bare_command() -> None:
    body = b'{"type":"KeepVectors","sae_id":"a","made_from":{"kind":"rows"}}'
    with pytest.raises(msgspec.ValidationError):
        DECODER.decode(body)


def test_defaults_are_those_of_the_contract() -> None:
    assert DECODER.decode(b'{"type":"LoadModel","model":"m"}') == LoadModel("m", "main", "auto", "auto")
    assert DECODER.decode(b'{"type":"Download","repository_id":"r"}') == Download("r", "main", None, False)
    assert DECODER.decode(b'{"type":"Attach","sae_id":"a"}') == Attach("a", None, None, "steer", "float32", False)
    steer = DECODER.decode(b'{"type":"Steer","sae_id":"a","features":[{"feature":1,"strength":2}]}')
    assert isinstance(steer, Steer)
    (edit,) = steer.features
    assert (edit.method, edit.positions, edit.exclude, edit.unit, edit.when) == ("add", "all", ("sink",), "raw", None)


NUMBERS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b'"1"', b'"nan"', b'"inf"', b"true", b"false", b"null",
    b"[]", b"{}", b"1_0", b"01", b"+1", b"0x1", b"." * 3,
]  # fmt: skip


@pytest.mark.parametrize(
    "number", [*NUMBERS, b"1.0", b"1e0", b"-1", b"2147483648", b"9223372036854775808", b"1" * 5000]
)
def test_features_are_whole_numbers(number: bytes) -> None:
    refused(b'{"type":"Steer","sae_id":"a","features":[{"feature":%s,"strength":1}]}' % number)


@pytest.mark.parametrize("number", [*NUMBERS, b"1000000.5", b"-1000001", b"1e308", b"9" * 400])
def test_strengths_are_finite_and_bounded(number: bytes) -> None:
    refused(b'{"type":"Steer","sae_id":"a","features":[{"feature":1,"strength":%s}]}' % number)


@pytest.mark.parametrize("number", [b"-0.0", b"0", b"85", b"1e6", b"-1000000", b"1e-300", b"0.1"])
def test_strengths_that_are_read(number: bytes) -> None:
    command = DECODER.decode(b'{"type":"Steer","sae_id":"a","features":[{"feature":1,"strength":%s}]}' % number)
    assert isinstance(command, Steer)
    assert command.features[0].strength == float(number)


@pytest.mark.parametrize(
    "number",
    [*(n for n in NUMBERS if n != b"null"), b"1.0", b"-1", b"4096", b"1099511627776", b"9223372036854775808"],
)
def test_layers(number: bytes) -> None:
    refused(b'{"type":"Attach","sae_id":"a","layer":%s}' % number)
    refused(b'{"type":"Attach","sae_id":"a","hook_point":{"kind":"mlp_in","layer":%s}}' % number)


BAD_EDITS: list[dict[str, Any]] = [
    {"method": "mul"}, {"positions": "last"}, {"positions": 3}, {"positions": {}}, {"exclude": "sink"},
    {"exclude": ["sinks"]}, {"exclude": ["sink"] * 4}, {"unit": "percent"}, {"weight": 1}, {"sae_id": "a b"},
    {"positions": {"tokens": []}}, {"positions": {"tokens": [-1]}}, {"positions": {"tokens": [1.5]}},
    {"positions": {"from": 2, "to": 2}}, {"positions": {"from": 3, "to": 2}}, {"positions": {"from_": 1}},
    {"positions": {"role": "tool"}}, {"positions": {"role": "user", "from": 1}},
    {"positions": {"tokens": [1], "to": 2}}, {"positions": {"tokens": list(range(4097))}},
    {"when": {"feature": 1}}, {"when": {"feature": -1, "above": 0}}, {"when": {"feature": 1, "above": "x"}},
]  # fmt: skip

BAD: list[dict[str, Any]] = [
    {}, {"type": "Nope"}, {"type": "attach", "sae_id": "a"}, {"sae_id": "a"}, {"type": None}, {"type": ["Attach"]},
    {"type": "Attach"}, {"type": "UnloadModel", "now": True}, {"type": "Attach", "sae_id": "a", "layer_": 1},
    {"type": "Attach", "sae_id": "a", "mode": "Steer"}, {"type": "Attach", "sae_id": "a", "mode": None},
    {"type": "Attach", "sae_id": "a", "dtype": "float64"}, {"type": "Attach", "sae_id": "a", "replace": 1},
    {"type": "Attach", "sae_id": "a", "replace": "true"},
    {"type": "Attach", "sae_id": "a", "hook_point": {"kind": "resid", "layer": 1}},
    {"type": "Attach", "sae_id": "a", "hook_point": {"kind": "mlp_in"}},
    {"type": "Attach", "sae_id": "a", "hook_point": {"kind": "mlp_in", "layer": 1, "head": 2}},
    {"type": "Attach", "sae_id": "a", "hook_point": "mlp_in.1"},
    *({"type": "Detach", "sae_id": each} for each in ("", "a/b", "a\\b", "a b", "a\n", "\na", "é", "a\0", "x" * 120,
                                                      "%2e%2e", "a\u202e", 1, None, ["a"])),
    *({"type": "Download", "repository_id": each} for each in (
        "", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a..b/c", "a--b", "a b", "a\n", "é", "e\u0301", "http://a/b",
        ".a/b", "a/.b", "x" * 97, "a\\b", "%2e/a", "😀")),
    *({**command, "revision": each} for each in (
        "", "../x", "a..b", "a//b", "a/", "/a", "a/./b", "a/.", "a b", "a\n", "x" * 201, "-a", "é", 1, None)
      for command in ({"type": "Download", "repository_id": "r"}, {"type": "LoadModel", "model": "m"})),
    *({"type": "Download", "repository_id": "r", "path": each} for each in (
        "", ".", "..", "../x", "a/../b", "a//b", "/a", "a/", "a\\b", "a\n", "a\0", "x" * 513, "%2e%2e%2fx;", 1)),
    *({"type": "LoadModel", "model": each} for each in ("", "a\0", "a\nb", "\x1b[2J", "x" * 4097, None)),
    {"type": "LoadModel", "model": "m", "dtype": "int8"}, {"type": "LoadModel", "model": "m", "device": "tpu"},
    {"type": "LoadModel", "model": "m", "device": "cuda:100"}, {"type": "LoadModel", "model": "m", "device": "cuda\n"},
    {"type": "Import", "path": ""}, {"type": "Import", "path": "a\rb"}, {"type": "Import"},
    {"type": "Steer", "sae_id": "a"}, {"type": "Steer", "sae_id": "a", "features": None},
    {"type": "Steer", "sae_id": "a", "features": {"3": 1}}, {"type": "Steer", "sae_id": "a", "features": [3]},
    {"type": "Steer", "sae_id": "a", "features": [{"feature": 3}]},
    {"type": "Steer", "sae_id": "a", "features": [{"feature": 0, "strength": 1}] * 257},
    *({"type": "Steer", "sae_id": "a", "features": [{"feature": 0, "strength": 1, **more}]} for more in BAD_EDITS),
    {"type": "Monitor", "sae_id": "a"}, {"type": "Monitor", "sae_id": "a", "enabled": True, "top_k": 0},
    {"type": "Monitor", "sae_id": "a", "enabled": True, "features": [-1]},
    {"type": "Monitor", "sae_id": "a", "enabled": True, "features": []},
]  # fmt: skip


@pytest.mark.parametrize("body", BAD, ids=repr)
def test_what_is_not_read(body: dict[str, Any]) -> None:
    refused(json.dumps(body).encode())
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, AnyCommand)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b'{"type":"UnloadModel"', b"[]", b'"UnloadModel"', b"null", b"1", b"\xef\xbb\xbf{}", b"[" * 9000,
     b'{"type":"UnloadModel"} {}', b'{"type":"Import","path":"\xff"}', b'{"type":"Import","path":"\\ud800"}',
     b"{'type':'UnloadModel'}", b'{"type":"UnloadModel",}', b'{"a":' * 9000],
    ids=lambda raw: repr(raw[:24]),
)  # fmt: skip
def test_what_is_no_json_object(raw: bytes) -> None:
    refused(raw)


def refused(raw: bytes) -> None:
    """Refused by the decoder, as one of the errors that the edge turns into a 400."""
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError, RecursionError)):
        DECODER.decode(raw)


def test_positions() -> None:
    read = msgspec.json.Decoder(Span).decode
    assert read(b'{"from":1,"to":3}') == Span(from_=1, to=3)
    assert read(b'{"to":3}') == Span(to=3)
    assert read(b'{"tokens":[0]}') == Span(tokens=(0,))
    assert msgspec.json.encode(Span(from_=1)) == b'{"from":1}'


def test_the_digest_of_a_command_fills_in_defaults() -> None:
    short, long = Attach("a"), DECODER.decode(b'{"type":"Attach","replace":false,"layer":null,"sae_id":"a"}')
    assert isinstance(long, Command)
    assert short.digest() == long.digest()
    others = [Attach("b"), Attach("a", layer=1), Attach("a", replace=True), Steer("a", ()), LoadModel("a")]
    assert len({command.digest() for command in (short, *others)}) == 6
    assert Attach("a", hook_point=HookPoint("mlp_in", 1)).digest() != Attach("a", layer=1).digest()


# — ids —


def test_ids_of_saes() -> None:
    sae_id = sae_id_of("org/saes", None, "main")
    assert sae_id.startswith("org-saes-root-main-")
    assert sae_id == sae_id_of("org/saes", "root", "main"), "no path is the root"
    assert len({sae_id_of("o/s", "a", "main"), sae_id_of("o/s-a", "main", "main"), sae_id_of("o/s", "a", "v2")}) == 3
    long = sae_id_of("org/" + "x" * 90, "y" * 500, "z" * 200)
    assert len(long) <= 119
    for made in (
        sae_id,
        long,
        import_id_of("/"),
        import_id_of("/ä ö/"),
        import_id_of("/a/.."),
        sae_id_of("a", "…", "b"),
    ):
        assert DECODER.decode(json.dumps({"type": "Detach", "sae_id": made}))


def test_ids_of_imports() -> None:
    assert import_id_of("/saes/demo/").startswith("demo-")
    assert import_id_of("/saes/demo") != import_id_of("/other/demo")
