"""`weights_sha256` and `weights_files`: what `sha256sum` prints, and what logs of before said.

The old digest of one file is written out here as it was: the sha256 of "<path in the SAE's folder>\\0<sha256>\\n".
"""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Download
from sae_actor.domain.effects import AttachEffect
from sae_actor.domain.messages import Start
from sae_actor.domain.refs import SaeFile
from sae_actor.domain.views.saes import sae_view
from sae_actor.domain.weights import WeightsFile, names, of_record, weights_sha256
from tests.domain.dsl import (
    DIED,
    REPOSITORY,
    STARTED,
    A,
    Story,
    attach_done,
    attaching,
    completed,
    downloading,
    given,
    loaded,
    restored,
)

FILE = hashlib.sha256(b"weights").hexdigest()
OTHER = hashlib.sha256(b"other weights").hexdigest()
HELD = (WeightsFile("a/sae_weights.safetensors", FILE),)
FILES = (SaeFile("a/cfg.json", 10, OTHER), SaeFile("a/sae_weights.safetensors", 7, FILE))
OLD = hashlib.sha256(f"sae_weights.safetensors\0{FILE}\n".encode()).hexdigest()
START = Start(version="2", max_attachments=1, drain_seconds=3.0)


def old(at: int) -> ev.DownloadCompleted:
    """As the version before wrote it."""
    return replace(completed(at), files=FILES, weights_sha256=OLD)


def new(at: int, sha256: str = FILE) -> ev.DownloadCompleted:
    held = (WeightsFile("a/sae_weights.safetensors", sha256),)
    return replace(completed(at), files=FILES, weights_sha256=sha256, weights_files=held)


def in_an_old_log() -> Story:
    """1 start, 2–3 model, 4–5 SAE, 6–7 attached: events without weights_files, under the old digest."""
    story = given(STARTED, loaded(), downloading()).and_then(old(4), attaching(), attach_done(6, weights_sha256=OLD))
    bare = [
        replace(each, data=msgspec.Raw(bytes(each.data).replace(b',"weights_files":[]', b""))) for each in story.events
    ]
    assert all(b"weights_files" not in bytes(each.data) for each in bare)
    return Story(tuple(bare))


def test_the_digest_of_one_file_is_its_own() -> None:
    assert weights_sha256([("sae_weights.safetensors", FILE)]) == FILE
    both = [("b", FILE), ("a", OTHER)]
    listed = hashlib.sha256(f"a\0{OTHER}\nb\0{FILE}\n".encode()).hexdigest()
    assert weights_sha256(both) == weights_sha256(reversed(both)) == listed


def test_a_digest_is_known_in_both_forms() -> None:
    assert names(FILE, HELD)
    assert names(OLD, HELD)
    assert not names(OTHER, HELD)
    assert not names("", HELD)
    assert not names(FILE, ())
    several = (WeightsFile("deep/down/a", OTHER), WeightsFile("deep/down/b", FILE))
    assert names(weights_sha256([("a", OTHER), ("b", FILE)]), several)
    assert not names(FILE, several)


def test_an_old_record_tells_its_files() -> None:
    assert of_record(FILES, OLD) == of_record(FILES, FILE) == HELD
    assert of_record(FILES, "another") == ()
    nested = (SaeFile("x/hyperparams.json", 1, OTHER), SaeFile("x/checkpoints/final.safetensors", 1, FILE))
    digest = hashlib.sha256(f"checkpoints/final.safetensors\0{FILE}\n".encode()).hexdigest()
    assert of_record(nested, digest) == (WeightsFile("x/checkpoints/final.safetensors", FILE),)
    state = in_an_old_log().state
    view = sae_view(state.saes[A], state)
    assert view.weights_sha256 == OLD, "what it says it goes on saying"
    assert view.weights_files == (WeightsFile("a/sae_weights.safetensors", FILE),)


def test_an_old_attachment_comes_back_and_keeps_its_digest() -> None:
    story = in_an_old_log().when(START).and_then(restored(2))
    (effect,) = story.pending
    assert isinstance(effect, AttachEffect)
    assert (effect.weights_sha256, effect.weights_files) == (OLD, HELD)
    story = story.when(attach_done(6, weights_sha256=OLD, weights_files=HELD)).then_types(ev.SaeAttached)
    assert (story.attachment().weights_sha256, story.attachment().weights_files) == (OLD, HELD)
    (active,) = story.state.in_force
    assert active.weights_sha256 == OLD, "the digest of the intervention is the one of before"
    assert story.state.weights(active) == HELD


def test_the_same_weights_fetched_anew_keep_the_digest_of_the_record() -> None:
    force = Download(repository_id=REPOSITORY, path="a", force=True)
    story = in_an_old_log().when(force)
    same = story.when(new(story.position)).then(replace(new(story.position), weights_sha256=OLD))
    assert (same.state.saes[A].weights_sha256, same.state.saes[A].weights_files) == (OLD, HELD)
    changed = story.when(new(story.position, OTHER)).then(new(story.position, OTHER))
    assert changed.state.saes[A].weights_sha256 == OTHER


@pytest.mark.parametrize(("sha256", "back"), [(FILE, True), (OTHER, False)])
def test_a_restart_holds_the_files_to_what_was_attached_in_either_form(sha256: str, back: bool) -> None:
    """The record was written anew under today's digest while the attachment goes by the old one."""
    story = in_an_old_log().and_then(downloading(force=True)).and_then(new(8, sha256)).and_then(DIED, restored(2))
    report = attach_done(6, weights_sha256=sha256, weights_files=new(8, sha256).weights_files)
    told = story.when(report)
    if back:
        told.then_types(ev.SaeAttached)
        assert told.attachment().weights_sha256 == OLD
    else:
        told.then_types(ev.AttachFailed)
    failed = story.and_then(
        ev.AttachFailed(
            request_position=6, sae_id=A, error=ev.Problem(code="sae_invalid", detail="gone"), restored=True
        )
    )
    assert failed.when(START).attachments() == [(A, "attaching" if back else "failed")]
