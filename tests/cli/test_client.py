"""The client against the real HTTP: every method, and each refusal as the error it names."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from typing import Any

import pytest

from sae_actor import errors
from sae_actor.client import Client, StreamEvent, UnreachableError, calls
from sae_actor.errors import SAEError
from tests.api.conftest import MODEL, REPOSITORY, Running
from tests.cli.conftest import in_thread


@pytest.fixture
def ready(client: Client) -> str:
    """A model is loaded and an SAE attached; its id."""
    client.load_model(MODEL)
    sae_id = str(client.download(REPOSITORY, "layer.1")["sae_id"])
    client.attach(sae_id)
    return sae_id


def test_a_life(client: Client) -> None:
    assert client.status()["ready"]
    assert client.model()["model_id"] is None
    client.load_model(MODEL)
    assert client.status()["model"]["model_id"] == MODEL
    assert [entry["path"] for entry in client.catalog(REPOSITORY)] == ["layer.1", "layer.2", "wide"]
    sae_id = client.download(REPOSITORY, "layer.1")["sae_id"]
    assert client.find(sae_id[:-3]) == client.sae(sae_id)["sae_id"] == sae_id
    assert client.compatibility(sae_id, 2)["layer"] == 2
    attached = client.attach(sae_id, 2)
    assert (attached["status"], attached["layer"]) == ("attached", 2)
    assert client.attachment()["sae_id"] == sae_id
    steering = client.steer(sae_id, {3: 2.5})
    assert steering == client.steering(sae_id)
    assert steering["features"][0]["exclude"] == ["sink"]
    assert client.steer(sae_id, [])["features"] == []
    assert client.detach(sae_id)["freed_bytes"] > 0
    assert client.delete(sae_id)["status"] == "deleted"
    assert client.list()["saes"] == []
    client.unload_model()
    state = client.state()
    assert (state["saes"], state["model"]) == ({}, None)
    assert client.state(0)["position"] == 0
    assert client.log(limit=1)["head"]["position"] == state["position"]


def test_import(client: Client) -> None:
    client.import_("/saes/demo")
    assert [sae["status"] for sae in client.list()["saes"]] == ["cached"]


def test_edits_keep_their_own_exclusion(client: Client, ready: str) -> None:
    edits = [{"feature": 1, "strength": 1.0, "exclude": ["sink"]}, {"feature": 2, "strength": 0.0, "method": "set"}]
    shown = client.steer(ready, edits, exclude=[], enabled=False)
    assert [edit["exclude"] for edit in shown["features"]] == [["sink"], []]
    assert shown["enabled"] is False


def test_presets(client: Client, ready: str) -> None:
    assert client.presets() == {"presets": []}
    client.save_preset("calm", [{"sae_id": ready, "steering": [{"feature": 1, "strength": 9}]}], "less of it")
    (preset,) = client.presets()["presets"]
    assert (preset["name"], preset["usable"], preset["description"]) == ("calm", True, "less of it")
    by_name = client.generate("Once", max_tokens=8, temperature=0, model="default@calm")
    by_field = client.generate("Once", max_tokens=8, temperature=0, sae={"preset": "calm"})
    assert by_name["sae"]["preset"] == by_field["sae"]["preset"] == {"name": "calm", "position": preset["position"]}
    assert by_name["choices"] == by_field["choices"]
    client.delete_preset("calm")
    with pytest.raises(errors.PresetNotFoundError):
        client.delete_preset("calm")
    with pytest.raises(errors.ModelNotFoundError):
        client.generate("Once", model="default@calm")


def test_runs(client: Client, ready: str) -> None:
    asked: dict[str, Any] = {"prompts": ["a", "b"], "seeds": [1], "max_tokens": 4}
    variants = [{"name": "bare", "sae": {"baseline": True}}, {"name": "server"}]
    run_id = client.run("sweep", asked, variants=variants, name="mine", key="once")
    assert client.run("sweep", asked, variants=variants, name="mine", key="once") == run_id
    done = client.run_end(run_id)
    assert (done["state"], done["name"], done["rows"]) == ("completed", "mine", 4)
    rows = list(client.run_rows(run_id))
    assert [(row["prompt"], row["variant"]) for row in rows] == [(0, "bare"), (0, "server"), (1, "bare"), (1, "server")]
    assert list(client.run_rows(run_id, after=3)) == rows[3:]
    assert client.run_table(run_id).startswith(b"prompt,variant,seed,text,")
    assert [each["run_id"] for each in client.runs("sweep", "completed")["runs"]] == [run_id]
    with pytest.raises(errors.RunNotRunningError):
        client.cancel_run(run_id)
    client.delete_run(run_id)
    with pytest.raises(errors.RunNotFoundError):
        client.run_now(run_id)
    failed = client.run("sweep", asked, variants=variants, prompts=["a" * 300])
    with pytest.raises(errors.BadRequestError, match="prompt 0"):
        client.run_end(failed)


def test_text(client: Client, ready: str) -> None:
    bare = client.generate("Once", max_tokens=8, temperature=0, sae={"baseline": True})
    assert bare["sae"]["interventions"] == []
    own = client.generate("Once", max_tokens=8, temperature=0, sae={"steering": [{"feature": 1, "strength": 9}]})
    assert own["sae"]["interventions"][0]["steering"][0]["exclude"] == ["sink"]
    assert own["choices"][0]["text"] != bare["choices"][0]["text"]
    messages = [{"role": "user", "content": "Hello"}]
    whole = client.generate(messages, max_tokens=8, temperature=0)["choices"][0]["message"]["content"]
    chunks = list(client.generate(messages, stream=True, max_tokens=8, temperature=0))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert "receipt" in chunks[-1]["sae"]


def test_events_resume(client: Client, ready: str) -> None:
    head = client.state()["position"]
    everything = list(islice((event for event in client.events() if event.id), head))
    assert [event.data["position"] for event in everything] == list(range(1, head + 1))
    rest = next(event for event in client.events(last_event_id=everything[-2].id) if event.id)
    assert rest == everything[-1]
    assert next(client.events(after=head - 1)) == everything[-1]
    assert next(client.events(types=["SaeAttached"])).type == "SaeAttached"
    assert client.log(types=["SaeAttached"])["events"][0]["data"]["sae_id"] == ready


def test_an_id_of_another_log_is_told_apart(client: Client, ready: str) -> None:
    first = next(client.events(last_event_id="ffffffff.1"))
    assert isinstance(first, StreamEvent)
    assert (first.id, first.type) == (None, "reset")
    assert ready


def test_an_outcome_that_takes_longer_than_the_wait(
    service: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_actor.api.submission.MAX_WAIT", 0)
    monkeypatch.setattr(calls, "MAX_WAIT", 0)
    monkeypatch.setattr(calls, "POLL_SECONDS", 0.01)
    service.engine.attach_seconds = 0.1
    service.hub.delays["download"] = 0.1
    client.load_model(MODEL)
    sae_id = client.download(REPOSITORY, "layer.1")["sae_id"]
    attached = client.attach(sae_id)
    assert (attached["status"], attached["layer"], attached["sae_id"]) == ("attached", 1, sae_id)
    assert attached["hook_point"] == {"kind": "resid_post", "layer": 1}
    assert client.detach(sae_id)["freed_bytes"] > 0
    assert client.delete(sae_id)["status"] == "deleted"


def test_without_waiting_and_with_a_key(client: Client) -> None:
    first = client.command("LoadModel", wait=0, key="k1", model=MODEL)
    again = client.command("LoadModel", key="k1", model=MODEL)
    assert first["status"] == "accepted"
    assert again["command_id"] == first["command_id"]
    assert client.download(REPOSITORY, "layer.1", wait=False)["status"] == "accepted"
    with pytest.raises(errors.IdempotencyKeyReusedError):
        client.command("UnloadModel", key="k1")


def test_cancel(service: Running, client: Client) -> None:
    service.hub.delays["download"] = 30
    sae_id = client.download(REPOSITORY, "layer.1", wait=False)["sae_id"]
    assert client.cancel_download(sae_id)["status"] == "cancelled"
    with pytest.raises(errors.SAENotFoundError):
        client.sae(sae_id)


def test_refusals_are_the_errors_they_name(client: Client) -> None:
    with pytest.raises(errors.SAENotFoundError):
        client.sae("nothing")
    with pytest.raises(errors.RepositoryNotFoundError):
        client.catalog("none/such")
    with pytest.raises(errors.ModelNotFoundError):
        client.load_model("none/such")
    with pytest.raises(errors.ModelNotLoadedError):
        client.generate("Once")
    with pytest.raises(errors.ModelNotLoadedError):
        next(client.generate("Once", stream=True))
    with pytest.raises(errors.BadRequestError):
        client.command("Nonsense")
    with pytest.raises(errors.BadRequestError):
        next(client.events(after=-1))
    client.load_model(MODEL)
    wide = client.download(REPOSITORY, "wide")["sae_id"]
    with pytest.raises(errors.SAEIncompatibleError) as refused:
        client.attach(wide)
    assert refused.value.fields["sae_d_in"] == 32
    assert refused.value.fields["model_d"] == 16
    with pytest.raises(errors.BadRequestError):
        client.generate("Once", no_such_option=1)


def test_find(client: Client) -> None:
    one = client.download(REPOSITORY, "layer.1")["sae_id"]
    client.download(REPOSITORY, "layer.2")
    assert client.find(one) == one
    with pytest.raises(errors.SAEAmbiguousError) as several:
        client.find("org")
    assert one in several.value.fields["candidates"]
    with pytest.raises(errors.SAENotFoundError):
        client.find("other")


def test_an_id_cannot_leave_its_place_in_the_path(client: Client) -> None:
    with pytest.raises(SAEError) as refused:
        client.sae("../model")
    assert refused.value.status in (400, 404)


def test_token() -> None:
    with in_thread(tokens=("secret",)) as running:
        with Client(running.url) as stranger, pytest.raises(errors.UnauthorizedError):
            stranger.list()
        with Client(running.url, "secret") as friend:
            assert friend.list()["saes"] == []


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", timeout=0.2) as client, pytest.raises(UnreachableError):
            client.list()
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(UnreachableError):
        client.list()
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(UnreachableError):
        next(client.events())


def test_a_service_that_stops_ends_the_stream() -> None:
    with in_thread() as running, Client(running.url) as client:
        stream = client.events()
        assert next(stream).type == "ActorStarted"
        closing = threading.Timer(0.1, running.actor.broadcast.close)
        closing.start()
        assert [event.type for event in islice(stream, 1)] == ["bye"]
        with pytest.raises(UnreachableError):
            next(stream)
        closing.join()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Client(url)


class _Stranger(BaseHTTPRequestHandler):
    """A web server that is no sae-actor."""

    def do_GET(self) -> None:
        missing = self.path == "/api/saes"
        self.send_response(404 if missing else 200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html></html>")

    def log_message(self, *_: object) -> None:
        pass


def test_another_server_is_not_taken_for_ours() -> None:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            with pytest.raises(errors.InternalError, match="sae-actor"):
                client.list()
            with pytest.raises(errors.InternalError, match="JSON"):
                client.model()
        server.shutdown()
