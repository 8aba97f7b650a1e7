"""Attach: where an SAE may go, and what stands in its way."""

from __future__ import annotations

from typing import Any

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach
from sae_actor.domain.decide import decide
from sae_actor.domain.effects import AttachEffect
from sae_actor.domain.events import Problem
from sae_actor.domain.messages import Start
from sae_actor.domain.refs import HookPoint
from sae_actor.errors import SAEError
from tests.domain.dsl import (
    BROKEN,
    MODEL,
    STARTED,
    A,
    B,
    C,
    Step,
    attach_done,
    attached,
    attaching,
    cached,
    completed,
    description,
    downloading,
    facts,
    given,
    loaded,
    loading,
)

READY: tuple[Step, ...] = (STARTED, loaded(), cached())
TWO = ev.ActorStarted(version="1", max_attachments=2)
ROOM: tuple[Step, ...] = (TWO, loaded(), cached("a"), cached("b"), cached("c"))  # 1, 2–3, 4–9


def test_attach_where_it_was_trained() -> None:
    story = given(*READY).when(Attach(sae_id=A)).then(attaching()).owes(("attach", 6))
    (effect,) = story.pending
    assert isinstance(effect, AttachEffect)
    assert (effect.weights_sha256, effect.sae, effect.dtype) == ("weights of a", description(), "float32")
    assert effect.location.path == "a"
    done = story.when(attach_done(6)).then(attach_done(6)).owes()
    assert (done.attachments(), done.open_commands()) == ([(A, "attached")], set())
    assert done.attachment().attached_at == done.events[-1].time
    done.when(attach_done(6)).nothing_happens()
    done.when(ev.AttachFailed(request_position=6, sae_id=A, error=BROKEN)).nothing_happens()


def test_attach_that_fails_leaves_nothing() -> None:
    report = ev.AttachFailed(request_position=6, sae_id=A, error=BROKEN)
    story = given(*READY, attaching()).when(report).then(report).owes()
    assert (story.attachments(), story.open_commands()) == ([], set())
    story.when(attach_done(6)).nothing_happens()


# — preconditions —


def test_the_sae_must_be_known() -> None:
    given(STARTED, loaded()).when(Attach(sae_id=A)).refused("sae_not_found", sae_id=A)


@pytest.mark.parametrize(
    ("code", "detail", "refusal", "told"),
    [
        ("sae_invalid", "b_enc has 3 values", "sae_invalid", f"{A}: b_enc has 3 values"),
        ("sae_unsupported", "batchtopk is not supported", "sae_unsupported", f"{A}: batchtopk is not supported"),
        (
            "sae_download_failed",
            "the hub is away",
            "sae_invalid",
            f"the files of {A} are not complete (the hub is away); download it again",
        ),
    ],
)
def test_an_sae_that_failed_is_refused_with_its_own_reason(code: str, detail: str, refusal: str, told: str) -> None:
    failed = ev.DownloadFailed(request_position=4, sae_id=A, error=Problem(code=code, detail=detail))
    with pytest.raises(SAEError) as refused:
        decide(Attach(sae_id=A), given(STARTED, loaded(), downloading(), failed).state)
    assert (refused.value.code, refused.value.detail, refused.value.fields["sae_id"]) == (refusal, told, A)


@pytest.mark.parametrize(("steps", "status"), [((), "none"), ((loading(),), "loading")])
def test_a_model_must_be_there(steps: tuple[Step, ...], status: str) -> None:
    given(STARTED, cached(), *steps).when(Attach(sae_id=A)).refused("model_not_loaded", status=status)


def test_the_width_must_be_the_models() -> None:
    story = given(STARTED, loaded(), cached(d_in=9, d_out=9)).when(Attach(sae_id=A))
    story.refused("sae_incompatible", sae_d_in=9, model_d=8, layer=1)


def test_at_a_hook_point_that_the_model_has() -> None:
    command = Attach(sae_id=A, hook_point=HookPoint("attn_z", 1))
    given(*READY).when(command).refused("sae_incompatible", kind="attn_z")


@pytest.mark.parametrize("layer", [4, 4095])
def test_in_a_layer_that_the_model_has(layer: int) -> None:
    given(*READY).when(Attach(sae_id=A, layer=3)).then_types(ev.AttachRequested)
    given(*READY).when(Attach(sae_id=A, layer=layer)).refused("layer_out_of_range", layer=layer, num_layers=4)
    given(*READY).when(Attach(sae_id=A, hook_point=HookPoint("resid_post", layer))).refused("layer_out_of_range")


def test_layer_and_hook_point_must_agree() -> None:
    command = Attach(sae_id=A, layer=2, hook_point=HookPoint("resid_post", 1))
    given(*READY).when(command).refused("bad_request", param="hook_point")
    given(STARTED).when(command).refused("bad_request", param="hook_point")
    agreeing = Attach(sae_id=A, layer=2, hook_point=HookPoint("resid_pre", 2))
    story = given(*READY).when(agreeing)
    assert isinstance(story.newest[0], ev.AttachRequested)
    assert story.newest[0].hook_point == HookPoint("resid_pre", 2)


def test_an_sae_that_names_no_hook_point_must_be_told_one() -> None:
    story = given(STARTED, loaded(), cached(hook_name=None, hook_point=None, trained_layer=None))
    story.when(Attach(sae_id=A)).refused("bad_request", param="hook_point")
    story.when(Attach(sae_id=A, layer=1)).refused("bad_request", param="hook_point")
    story.when(Attach(sae_id=A, hook_point=HookPoint("mlp_out", 0))).then_types(ev.AttachRequested)


@pytest.mark.parametrize(
    ("layer", "out"), [(None, HookPoint("mlp_out", 1)), (3, HookPoint("mlp_out", 3)), (0, HookPoint("mlp_out", 0))]
)
def test_a_transcoder_moves_both_its_hook_points(layer: int | None, out: HookPoint) -> None:
    sae: dict[str, Any] = {"hook_point": HookPoint("mlp_in", 1), "hook_point_out": HookPoint("mlp_out", 1)}
    story = given(STARTED, loaded(), cached(**sae)).when(Attach(sae_id=A, layer=layer))
    assert isinstance(story.newest[0], ev.AttachRequested)
    assert story.newest[0].hook_point_out == out


def test_a_transcoder_must_fit_where_it_writes() -> None:
    across: dict[str, Any] = {"hook_point": HookPoint("mlp_in", 1), "hook_point_out": HookPoint("mlp_out", 3)}
    story = given(STARTED, loaded(), cached(**across))
    story.when(Attach(sae_id=A, layer=2)).refused("layer_out_of_range")
    back: dict[str, Any] = {"hook_point": HookPoint("mlp_in", 3), "hook_point_out": HookPoint("mlp_out", 1)}
    given(STARTED, loaded(), cached(**back)).when(Attach(sae_id=A, layer=1)).refused("layer_out_of_range")
    wide = given(STARTED, loaded(), cached(d_out=9, **across))
    wide.when(Attach(sae_id=A)).refused("sae_incompatible", sae_d_out=9, model_d=8)
    given(STARTED, loaded(), cached(d_out=9)).when(Attach(sae_id=A)).refused("sae_incompatible")


@pytest.mark.parametrize(
    ("sae", "command", "words"),
    [
        ({}, Attach(sae_id=A, layer=2), ["layer 1", "layer 2"]),
        ({}, Attach(sae_id=A, hook_point=HookPoint("mlp_out", 1)), ["resid_post", "mlp_out"]),
        ({"trained_on": "gpt2"}, Attach(sae_id=A), ["gpt2", MODEL]),
        ({"warnings": ("odd",)}, Attach(sae_id=A), ["odd"]),
    ],
)
def test_what_is_odd_is_said(sae: dict[str, Any], command: Attach, words: list[str]) -> None:
    story = given(STARTED, loaded(), cached(**sae)).when(command)
    (asked,) = story.newest
    assert isinstance(asked, ev.AttachRequested)
    (warning,) = asked.warnings
    assert all(word in warning for word in words)


@pytest.mark.parametrize(
    ("prepend_bos", "adds_bos", "says"),
    [
        (True, False, "does not add"),
        (False, True, "without BOS"),
        (True, True, None),
        (False, False, None),
        (None, False, None),  # the files do not say
        (True, None, None),  # a model of an old log, whose tokenizer nobody looked at
    ],
)
def test_a_tokenizer_that_begins_texts_otherwise_than_in_training(
    prepend_bos: bool | None, adds_bos: bool | None, says: str | None
) -> None:
    story = given(STARTED, loaded(adds_bos=adds_bos), cached(prepend_bos=prepend_bos)).when(Attach(sae_id=A))
    assert isinstance(story.newest[0], ev.AttachRequested)
    warnings = story.newest[0].warnings
    assert len(warnings) == (says is not None)
    assert all("BOS" in warning and str(says) in warning for warning in warnings)


@pytest.mark.parametrize(
    ("trained_on", "model_id"), [("gpt2-small", "openai-community/gpt2"), ("tiny", "/models/Tiny/"), (None, "x")]
)
def test_spellings_of_one_model(trained_on: str | None, model_id: str) -> None:
    story = given(STARTED, loaded(model_id), cached(trained_on=trained_on)).when(Attach(sae_id=A))
    assert isinstance(story.newest[0], ev.AttachRequested)
    assert story.newest[0].warnings == ()


# — one at a time, or several —


def test_the_second_is_refused() -> None:
    ready = given(*READY, cached("b"))
    for story in (ready.and_then(attaching()), ready.and_then(attached())):
        story.when(Attach(sae_id=B)).refused("sae_already_attached", sae_id=A, max_attachments=1)


def test_a_larger_number_allows_several_in_the_order_of_the_log() -> None:
    story = given(*ROOM).when(Attach(sae_id=A)).when(Attach(sae_id=B, layer=2)).owes(("attach", 10))
    story.when(Attach(sae_id=C)).refused("sae_already_attached", max_attachments=2)
    story.when(Attach(sae_id=A, layer=3)).refused("sae_already_attached", sae_id=A)
    story.when(attach_done(10)).owes(("attach", 11))
    assert story.when(ev.AttachFailed(request_position=10, sae_id=A, error=BROKEN)).owes(("attach", 11)).attachments()
    assert Start(version="1").max_attachments == 1


def test_one_reconstructs_at_a_hook_point_also_of_two_that_come_at_once() -> None:
    command = Attach(sae_id=B, mode="reconstruct")
    for step in (attached(A, mode="reconstruct"), attaching(A, mode="reconstruct")):
        story = given(*ROOM, step)
        story.when(command).refused("sae_already_attached")
        story.when(Attach(sae_id=B, layer=2, mode="reconstruct")).then_types(ev.AttachRequested)
        story.when(Attach(sae_id=B)).then_types(ev.AttachRequested)
    given(*ROOM, attached(A)).when(command).then_types(ev.AttachRequested)


def test_where_one_reconstructs_is_where_it_writes() -> None:
    """A transcoder reads at mlp_in what it writes at mlp_out, where another SAE reads and writes."""
    read, written = HookPoint("mlp_in", 1), HookPoint("mlp_out", 1)
    room = (TWO, loaded(), cached("a", hook_point=read, hook_point_out=written), cached("b", hook_point=written))
    story = given(*room).when(Attach(sae_id=A, mode="reconstruct"))
    come = story.when(attach_done(8))
    for at in (story, come):
        at.when(Attach(sae_id=B, mode="reconstruct")).refused("sae_already_attached")
        at.when(Attach(sae_id=B)).then_types(ev.AttachRequested)
        at.when(Attach(sae_id=B, hook_point=read, mode="reconstruct")).then_types(ev.AttachRequested)
    other = given(*room).when(Attach(sae_id=B, mode="reconstruct")).when(attach_done(8, B))
    other.when(Attach(sae_id=A, mode="reconstruct")).refused("sae_already_attached")


def test_a_download_again_does_not_change_what_is_attached() -> None:
    story = given(*READY, attached()).when(completed(4, d_sae=64)).nothing_happens()
    assert story.state.saes[A].sae == description()
    assert facts().widths["resid_post"] == 8
