"""The client's commands against the real HTTP: what they print, and with what they leave."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import pytest

from sae_actor.cli.render.shading import Shading
from sae_actor.client import Client
from sae_actor.domain.chats import Reasoning
from sae_actor.errors import SAEInvalidError
from tests.api.conftest import MODEL, REPOSITORY, Running
from tests.children import child
from tests.cli.conftest import Ran, in_thread
from tests.fakes.engine import FakeEngine
from tests.fakes.log import MemoryLog

Command = Callable[..., Ran]


@pytest.fixture
def at(service: Running, command: Command) -> Command:
    """The command line of a client of the running service."""

    def run(*argv: str) -> Ran:
        return command(*argv, "--url", service.url)

    return run


def test_a_life(at: Command, client: Client) -> None:
    nothing = at("status")
    assert nothing == (0, "ready\nmodel       none\nattached    nothing\n", "")
    assert at("list").out == "no SAEs\n"
    client.load_model(MODEL)
    catalog = at("catalog", REPOSITORY)
    assert catalog.out.splitlines()[1].split()[:3] == ["layer.1", "sae_lens", "blocks.1.hook_resid_post"]
    downloaded = at("download", REPOSITORY, "--path", "layer.1")
    sae_id = downloaded.out.partition(":")[0]
    assert "2 files" in downloaded.out
    assert "(was there)" in at("download", REPOSITORY, "--path", "layer.1").out
    assert sae_id in at("list").out
    attached = at("attach", sae_id[:12], "--layer", "2")
    assert attached.code == 0
    assert attached.out.startswith(f"{sae_id} attached at resid_post.2, ")
    assert "warning: " in attached.out
    steered = at("steer", sae_id[:12], "3=2.5", "5=-1e1", "--exclude", "none")
    assert steered.out.startswith("3=2.5; 5=-10   [position ")
    assert client.steering(sae_id)["features"][0]["exclude"] == []
    status = at("status").out
    assert f"{sae_id} at resid_post.2, steer\n  edit      3=2.5\n" in status
    assert "fake" not in status
    assert f"model       {MODEL} (float32 on cpu, 4 layers of 16)" in status
    assert " (out of force)   [position " in at("steer", sae_id, "--method", "set", "3=0", "--disable").out
    assert f"{sae_id} at resid_post.2, steer\n  edit      3=0 (method set, exclude sink) (out of force)\n" in (
        at("status").out
    )
    shown = client.steering(sae_id)
    assert shown["enabled"] is False
    assert shown["features"][0]["method"] == "set"
    assert shown["features"][0]["exclude"] == ["sink"]
    assert at("steer", sae_id, "--clear").out.startswith("no edits ")
    assert at("detach", sae_id).out.startswith(f"{sae_id} detached, ")
    assert at("delete", sae_id).out.startswith(f"{sae_id} deleted, ")


def test_presets(at: Command, client: Client) -> None:
    assert at("preset", "list").out == "no presets\n"
    client.load_model(MODEL)
    sae_id = str(client.download(REPOSITORY, "layer.1")["sae_id"])
    saved = at(
        "preset", "save", "calm", sae_id[:12], "3=2.5", "--exclude", "none", "5=-1", "--description", "less of it"
    )
    assert saved.out.startswith("calm saved; use it as model default@calm   [position ")
    (preset,) = client.presets()["presets"]
    assert preset["interventions"][0]["steering"][0]["exclude"] == []
    at_position = f"calm, less of it   [position {preset['position']}]"
    assert at("preset", "list").out == f"{at_position} not attached: {sae_id}\n  {sae_id}, steer: 3=2.5; 5=-1\n"
    client.attach(sae_id)
    assert f"{at_position} usable" in at("preset", "list").out
    made = json.loads(at("generate", "Once", "--preset", "calm", "--max-tokens", "4", "--json").out)
    assert made["sae"]["preset"] == {"name": "calm", "position": preset["position"]}
    assert json.loads(at("preset", "list", "--json").out)["presets"][0]["name"] == "calm"
    assert at("preset", "delete", "calm").out.startswith("calm deleted   [position ")
    gone = at("preset", "delete", "calm")
    assert (gone.code, "there is no preset calm" in gone.err) == (64, True)
    assert at("generate", "Once", "--preset", "calm", "--baseline").code == 64


@pytest.mark.parametrize(("given", "strength"), [("3=-5", -5.0), ("3=-.5", -0.5), ("3=-0", 0.0), ("0=-1e1", -10.0)])
def test_negative_strengths(at: Command, client: Client, given: str, strength: float) -> None:
    client.load_model(MODEL)
    client.download(REPOSITORY, "layer.1")
    client.attach(client.find("org-saes"))
    assert at("steer", "org-saes", given).code == 0
    assert at("steer", "org-saes", "--method", "set", given).code == 0
    assert client.steering(client.find("org-saes"))["features"][0]["strength"] == strength


def test_status_while_an_sae_is_brought_back(command: Command) -> None:
    """Not "nothing": it is on its way, and the service says so."""
    log = MemoryLog()
    with in_thread(log=log) as first, Client(first.url) as client:
        client.load_model(MODEL)
        client.download(REPOSITORY, "layer.1")
        client.attach(client.find("org-saes"))
        sae_id = client.find("org-saes")
    engine = FakeEngine(attach_gate=asyncio.Event())
    with in_thread(log=log, engine=engine, hub=first.hub) as second, Client(second.url) as client:
        while client.status()["model"]["status"] != "loaded":
            pass
        shown = command("status", "--url", second.url)
        line = f"attaching   {sae_id} at resid_post.1, steer: it is being attached again"
        assert shown.out.splitlines() == [
            f"not ready: SAE {sae_id} is being attached", f"model       {MODEL} (float32 on cpu, 4 layers of 16)", line,
        ]  # fmt: skip
        (coming,) = client.status()["readiness"]["coming_back"]
        assert coming == {"sae_id": sae_id, "hook_point": {"kind": "resid_post", "layer": 1}, "mode": "steer"}
        assert engine.attach_gate is not None
        second.actor.failure.get_loop().call_soon_threadsafe(engine.attach_gate.set)
        while not client.status()["ready"]:
            pass
        assert client.status()["attaching"] == []
        assert f"attached    {sae_id} at resid_post.1, steer" in command("status", "--url", second.url).out


def test_status_while_an_sae_is_attached(command: Command) -> None:
    engine = FakeEngine(attach_gate=asyncio.Event())
    with in_thread(engine=engine) as running, Client(running.url) as client:
        client.load_model(MODEL)
        client.download(REPOSITORY, "layer.1")
        sae_id = client.find("org-saes")
        client.command("Attach", sae_id=sae_id, wait=0)
        assert command("status", "--url", running.url).out.splitlines()[2:] == [f"attaching   {sae_id}"]
        assert engine.attach_gate is not None
        running.actor.failure.get_loop().call_soon_threadsafe(engine.attach_gate.set)


def test_json_is_the_raw_answer(at: Command, client: Client) -> None:
    client.load_model(MODEL)
    outcome = json.loads(at("download", REPOSITORY, "--path", "layer.1", "--json").out)
    sae_id = outcome["sae_id"]
    assert outcome["status"] == "completed"
    assert json.loads(at("attach", sae_id, "--json").out)["status"] == "attached"
    assert json.loads(at("status", "--json").out) == client.status()
    assert json.loads(at("list", "--json").out) == client.list()
    assert json.loads(at("catalog", REPOSITORY, "--json").out) == client.catalog(REPOSITORY)
    assert json.loads(at("steer", sae_id, "1=1", "--json").out)["features"][0]["feature"] == 1
    assert json.loads(at("generate", "Once", "--max-tokens", "4", "--json").out)["usage"]["completion_tokens"] == 4
    assert json.loads(at("detach", sae_id, "--json").out)["freed_bytes"] > 0


def test_text(at: Command, client: Client) -> None:
    client.load_model(MODEL)
    options = ("--max-tokens", "6", "--temperature", "0")
    bare = at("generate", "Once", *options)
    whole = client.generate("Once", max_tokens=6, temperature=0)["choices"][0]["text"]
    assert (bare.code, bare.out, bare.err) == (0, whole + "\n", "")
    assert at("generate", "Once", *options, "--baseline").out == bare.out
    chat = at("generate", "Once", *options, "--chat", "--system", "Be brief.").out
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once"}]
    answer = client.generate(messages, max_tokens=6, temperature=0)["choices"][0]["message"]["content"]
    assert chat == answer + "\n"
    sampled = at("generate", "Once", "--max-tokens", "6", "--seed", "7", "--top-p", "0.9", "--stop", "\n\n")
    assert sampled.code == 0


def test_thoughts_are_not_in_the_output_of_a_pipe(service: Running, at: Command, client: Client) -> None:
    service.engine.reasoning = Reasoning(format="block", begin="<think>", end="</think>")
    service.engine.script = list(b"<think>\nHm.\n</think>\n\nHello.")
    client.load_model(MODEL)
    assert at("generate", "Once", "--chat", "--max-tokens", "100") == (0, "Hello.\n", "Hm.\n\n")
    assert at("generate", "Once", "--max-tokens", "100") == (0, "<think>\nHm.\n</think>\n\nHello.\n", "")


def test_events_are_followed_until_the_reader_leaves(service: Running, client: Client) -> None:
    client.load_model(MODEL)
    follow = [sys.executable, "-m", "sae_actor", "events", "--url", service.url]
    with child([*follow, "--json", "--after", "1"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(line) for line in islice(process.stdout, 2)]
        assert [event["type"] for event in lines] == ["ModelLoadRequested", "ModelLoaded"]
        client.download(REPOSITORY, "layer.1")
        assert json.loads(process.stdout.readline())["type"] == "DownloadRequested"
        process.send_signal(2)
        assert process.wait(10) == 130
    with child([*follow, "--types", "ModelLoaded"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ModelLoaded" in process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        client.unload_model()
        client.load_model(MODEL)
        assert process.wait(10) == 0


def test_events_end_with_the_service(command: Command) -> None:
    with in_thread() as running:
        running.actor.broadcast.close()
        ran = command("events", "--url", running.url)
    assert ran.code == 69
    assert "ActorStarted" in ran.out
    assert "closed the event stream" in ran.err


def test_what_the_service_refuses(at: Command, client: Client) -> None:
    assert at("attach", "nothing") == (
        64,
        "",
        "sae-actor: no SAE has the id nothing or an id that begins with it (sae_not_found)\n",
    )
    assert at("generate", "Once").code == 64
    assert at("catalog", "none/such").code == 69
    assert at("catalog", "bad repo") == (
        64,
        "",
        "sae-actor: repository_id must be owner/name of a repository, in letters, digits and . _ -; or an SAE's name "
        "elsewhere, saelens:RELEASE/SAE_ID or neuronpedia:MODEL/SOURCE (bad_request)\n",
    )
    assert "revision must be a branch, a tag or a commit" in at("catalog", "org/saes", "--revision", "a b").err
    assert at("download", "none/such").code == 69
    client.load_model(MODEL)
    one = client.download(REPOSITORY, "layer.1")["sae_id"]
    wide = client.download(REPOSITORY, "wide")["sae_id"]
    ambiguous = at("attach", "org")
    assert ambiguous.code == 64
    assert one in ambiguous.err
    assert wide in ambiguous.err
    assert at("attach", wide).code == 64
    assert at("attach", one, "--layer", "99").code == 64
    assert at("steer", one, "1=1").code == 64
    assert at("detach", one).code == 64
    client.attach(one)
    assert "sae_already_attached" in at("attach", one).err
    assert at("steer", one, "32=1").code == 64
    assert at("steer", one, "1=1e7").code == 64
    assert at("delete", one).code == 64


def test_an_sae_that_failed_is_listed_with_the_reason(at: Command, client: Client, service: Running) -> None:
    client.load_model(MODEL)
    service.hub.fail("download", SAEInvalidError("cfg.json: d_in is -1", check="config"))
    assert at("download", REPOSITORY, "--path", "layer.1").code == 65
    (sae,) = client.list()["saes"]
    assert at("list").out.splitlines()[-1] == f"{sae['sae_id']}: cfg.json: d_in is -1"
    attach = at("attach", sae["sae_id"])
    assert (attach.code, attach.err) == (65, f"sae-actor: {sae['sae_id']}: cfg.json: d_in is -1 (sae_invalid)\n")


def test_not_ready_is_shown(at: Command, client: Client, service: Running) -> None:
    client.load_model(MODEL)
    client.attach(client.download(REPOSITORY, "layer.1")["sae_id"])
    service.actor.read_only = "no space"
    assert at("status").out.startswith("not ready: no space\n")
    service.actor.started = False  # as with --read-only
    assert at("status").out.startswith("read_only\n")
    assert at("detach", "org").code == 69


def test_the_service_is_found_by_flag_then_environment(
    service: Running, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_ACTOR_URL", service.url)
    assert command("status").code == 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    elsewhere = command("status", "--url", f"http://127.0.0.1:{port}")
    assert elsewhere.code == 69
    assert str(port) in elsewhere.err
    assert command("status", "--url", "nonsense").code == 64


def test_the_token_comes_from_the_environment(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(tokens=("secret",)) as running:
        assert command("list", "--url", running.url).code == 77
        monkeypatch.setenv("SAE_ACTOR_TOKEN", "secret")
        assert command("list", "--url", running.url).code == 0
        monkeypatch.setenv("SAE_ACTOR_TOKEN", "s\u00e9cret\n")
        refused = command("list", "--url", running.url)
        assert refused.code == 78
        assert "cret" not in refused.err


def test_an_answer_shaded_by_a_feature(service: Running, at: Command, client: Client) -> None:
    """Token n turns on the features n, n + 1 and n + 2, modulo 32, at 3, 2 and 1."""
    service.engine.script = [96, 95, 65, 94, 96]
    client.load_model(MODEL)
    sae_id = str(client.download(REPOSITORY, "layer.1")["sae_id"])
    client.attach(sae_id)
    options = ("--max-tokens", "5", "--temperature", "0")
    plain = at("generate", "Once", *options).out
    shaded = at("generate", "Once", *options, "--shade", "0")
    dark, middle, light = (f"\x1b[38;5;16;48;5;{colour}m" for colour in (202, 209, 223))
    assert shaded.out == f"{dark}`\x1b[0m{middle}_\x1b[0mA{light}^\x1b[0m`\n", "the last token was not run"
    assert plain == "`_A^`\n"
    assert shaded.err == "shaded: feature 0, 3 at most\n"
    client.steer(sae_id, [{"feature": 5, "strength": 1.0, "positions": {"from": 5, "to": 7}}])
    edited = at("generate", "Once", *options, "--shade", f"{sae_id[:12]}:0")
    under = middle.replace("[", "[4;")
    assert edited.out == f"{dark}`\x1b[0m{under}_\x1b[0m\x1b[4mA\x1b[0m{light}^\x1b[0m`\n"
    assert edited.err == "shaded: feature 0, 3 at most; underlined: edited\n"
    raw = json.loads(at("generate", "Once", *options, "--shade", "0", "--json").out)
    assert raw["sae"]["positions"][4]["features"][1] == {"sae_id": sae_id, "feature": 0, "before": 3.0, "after": 3.0}
    assert at("generate", "Once", "--shade", "32").err.endswith("(feature_out_of_range)\n")
    for wrong in ("x", ":3", "-1"):
        assert at("generate", "Once", "--shade", wrong).code == 64


def test_lines_are_shaded_one_by_one() -> None:
    shading = Shading(3)
    first = {"position": 0, "edits": [], "features": []}
    feature = {"sae_id": "a", "feature": 3, "before": -2.0, "after": 0.0, "label": "three\x1b"}
    shading.add("a\n\nb", {"positions": [first]})
    shading.add("c", {"positions": [{"position": 1, "edits": [["a", 0]], "features": [feature]}]})
    shading.add("", {"positions": []})
    assert shading.drawn() == "\x1b[4;38;5;16;48;5;202ma\x1b[0m\n\n\x1b[4;38;5;16;48;5;202mb\x1b[0mc"
    assert shading.legend() == "shaded: feature 3 (three\x1b), 2 at most; underlined: edited"
