"""What is shown of a state, and what an outcome is made of."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, CancelDownload, Delete, Detach, Download
from sae_actor.domain.messages import Start
from sae_actor.domain.state import EMPTY
from sae_actor.domain.views.attachments import attachment_view, steering_view
from sae_actor.domain.views.outcomes import outcome
from sae_actor.domain.views.resources import degraded_view, model_view, state_view, waiting_for
from sae_actor.domain.views.saes import sae_view
from tests.domain.dsl import (
    BROKEN,
    DIED,
    MODEL,
    REPOSITORY,
    STARTED,
    A,
    Story,
    attach_done,
    attached,
    attached_steered,
    attaching,
    cached,
    completed,
    downloading,
    edit,
    given,
    loaded,
    loading,
    lost,
    restored,
)

SAE_FIELDS = {
    "sae_id", "repository_id", "revision", "commit", "path", "name", "status", "format", "architecture",
    "d_in", "d_sae", "dtype", "trained_on", "trained_layer", "hook_name", "hook_point", "files",
    "file_size_bytes", "memory_bytes", "created_at", "error",
}  # fmt: skip
ATTACHMENT_FIELDS = {
    "is_attached", "sae_id", "layer", "hook_point", "mode", "attached_at", "memory_bytes", "steering",
    "position",
}  # fmt: skip
MODEL_FIELDS = {
    "status", "model_id", "revision", "commit", "dtype", "device", "num_layers", "hidden_size",
    "memory_bytes",
}  # fmt: skip


def plain(value: object) -> Any:
    """The value as a client reads it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def status(story: Story) -> str:
    return sae_view(story.state.saes[A], story.state).status


def test_the_status_of_an_sae() -> None:
    ready = given(STARTED, loaded(), cached())
    assert status(given(STARTED, downloading())) == "downloading"
    assert (
        status(given(STARTED, downloading(), ev.DownloadFailed(request_position=2, sae_id=A, error=BROKEN))) == "error"
    )
    assert status(ready) == "cached"
    assert status(ready.and_then(attaching())) == "attaching"
    assert status(ready.and_then(attached())) == "attached"
    assert status(ready.and_then(attached(), attaching(layer=2, replaces=(A,)))) == "attached"
    assert status(ready.and_then(attached(), ev.DetachRequested(sae_id=A))) == "attached", "it still drains"
    assert status(ready.and_then(ev.DeleteRequested(sae_id=A))) == "deleting"
    assert status(ready.and_then(attached(), DIED)) == "attaching"
    gone = ready.and_then(attached(), DIED, restored(2), lost(A, 6))
    assert status(gone) == "error"
    assert sae_view(gone.state.saes[A], gone.state).error == BROKEN
    assert status(gone.when(Attach(sae_id=A))) == "attaching"
    assert status(gone.when(Delete(sae_id=A))) == "deleting"


def test_an_sae_has_the_fields_of_the_contract() -> None:
    story = given(*attached_steered())
    view = plain(sae_view(story.state.saes[A], story.state))
    assert set(view) >= SAE_FIELDS
    assert (view["name"], view["file_size_bytes"], view["error"]) == ("a", 110, None)
    assert view["hook_point"] == {"kind": "resid_post", "layer": 1}
    d_in = d_out = 8
    assert view["memory_bytes"] == 4 * (d_in * 32 + 32 + 32 * d_out + d_out)
    early = given(STARTED, downloading())
    empty = plain(sae_view(early.state.saes[A], early.state))
    assert set(empty) == set(view)
    assert [empty["format"], empty["files"], empty["file_size_bytes"]] == [None, [], 0]


def test_the_attachment() -> None:
    story = given(*attached_steered())
    view = plain(attachment_view(story.state))
    assert set(view) >= ATTACHMENT_FIELDS
    assert (view["is_attached"], view["sae_id"], view["layer"], view["position"]) == (True, A, 1, 8)
    assert view["steering"] == plain([edit()])
    assert view["attachments"] == [{key: value for key, value in view.items() if key != "attachments"}]
    none = plain(attachment_view(EMPTY))
    assert none == {**dict.fromkeys(view), "is_attached": False, "attachments": []}
    assert plain(attachment_view(story.when(Detach(sae_id=A)).state)) == none
    assert plain(steering_view(story.attachment()))["features"] == view["steering"]


def test_the_model() -> None:
    assert model_view(EMPTY).status == "none"
    assert model_view(given(STARTED, loading()).state).status == "loading"
    view = plain(model_view(given(STARTED, loaded()).state))
    assert set(view) >= MODEL_FIELDS
    assert (view["status"], view["model_id"], view["hidden_size"]) == ("loaded", MODEL, 8)
    failed = given(STARTED, loading(), ev.ModelLoadFailed(request_position=2, error=BROKEN))
    assert model_view(failed.state).error == BROKEN


def test_the_whole_state() -> None:
    assert plain(state_view(EMPTY)) == {
        "position": 0, "model": None, "saes": {}, "attachments": [], "monitors": [], "commands": [], "generations": [],
        "presets": [],
    }  # fmt: skip
    story = given(*attached_steered()).when(Detach(sae_id=A))
    view = plain(state_view(story.state))
    assert (view["position"], list(view["saes"]), view["attachments"]) == (9, [A], [])
    assert [(c["command_id"], c["type"]) for c in view["commands"]] == [("c9", "Detach")]
    assert view["saes"][A]["files"][0]["path"] == "a/cfg.json"


def test_ready_when_everything_wanted_is_in_place_or_given_up() -> None:
    assert waiting_for(EMPTY) == ["the log is being replayed"]
    assert waiting_for(given(STARTED).state) == []
    assert waiting_for(given(STARTED, loading()).state) == [f"model {MODEL} is being loaded"]
    assert waiting_for(given(STARTED, loaded(), cached(), attaching()).state) == []
    story = given(*attached_steered()).when(Start(version="2"))
    assert waiting_for(story.state) == [f"model {MODEL} is being loaded", f"SAE {A} is being attached"]
    story = story.and_then(restored(2))
    assert waiting_for(story.state) == [f"SAE {A} is being attached"]
    gone = story.when(lost(A, 6))
    assert waiting_for(gone.state) == []
    assert plain(degraded_view(gone.state)) == [
        {"sae_id": A, "hook_point": {"kind": "resid_post", "layer": 1}, "error": plain(BROKEN)}
    ]
    assert degraded_view(story.and_then(attach_done(6, restored=True)).state) == ()


def test_a_model_that_could_not_be_loaded_is_told() -> None:
    failed = ev.ModelLoadFailed(request_position=2, error=BROKEN)
    for story in (given(STARTED, loading(), failed), given(STARTED, loaded(), DIED).when(failed)):
        assert plain(degraded_view(story.state)) == [{"sae_id": None, "model": MODEL, "error": plain(BROKEN)}]
        assert waiting_for(story.state) == []


# — outcomes —


def outcome_of(story: Story, command_id: str, *shared: int) -> tuple[str, int, str | None]:
    own = [event for event in story.events if event.command_id == command_id or event.position in shared]
    made = outcome(command_id, own, is_open=command_id in story.state.commands)
    return made.status, made.position, made.error.code if made.error else None


@pytest.mark.parametrize("good", [True, False])
def test_an_outcome(good: bool) -> None:
    story = given(STARTED, loaded(), cached()).when(Attach(sae_id=A))
    assert outcome_of(story, "c6") == ("accepted", 6, None)
    report = attach_done(6) if good else ev.AttachFailed(request_position=6, sae_id=A, error=BROKEN)
    done = story.when(report)
    assert outcome_of(done, "c6", 7) == (("completed", 6, None) if good else ("failed", 6, "internal"))


def test_a_shared_outcome() -> None:
    story = given(STARTED, downloading()).when(Download(repository_id=REPOSITORY, path="a"))
    assert outcome_of(story, "c3") == ("accepted", 3, None)
    assert outcome_of(story.when(completed(2)), "c3", 4) == ("completed", 3, None)
    cancelled = story.when(CancelDownload(sae_id=A))
    assert outcome_of(cancelled, "c4") == ("completed", 4, None)
    for command_id, position in (("c2", 2), ("c3", 3)):
        assert outcome_of(cancelled, command_id, 4) == ("failed", position, "sae_download_failed")
