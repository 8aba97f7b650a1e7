"""Which intervention a text runs under, frozen at its admission."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.chats import MessageSpan, Tokenization
from sae_actor.domain.commands import Attach, Detach, RequestedIntervention, Steer
from sae_actor.domain.messages import AdmitGeneration, RequestedStop
from sae_actor.domain.refs import ActiveSae, Edit, HookPoint, Intervention, Span, StopWhen, intervention_sha256
from tests.domain.dsl import (
    STARTED,
    A,
    B,
    C,
    Step,
    Story,
    attach_done,
    attached,
    attached_steered,
    cached,
    edit,
    given,
    loaded,
)

SAMPLING = ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=4, seed=1)
TWO = ev.ActorStarted(version="1", max_attachments=2)
BOTH: tuple[Step, ...] = (  # 1, 2–3, 4–7, a: 8, b: 11
    TWO,
    loaded(),
    cached("a"),
    cached("b"),
    attached(A, steering=(edit(),)),
    attached(B, 2),
)
ACTIVE_A = ActiveSae(
    sae_id=A,
    weights_sha256="weights of a",
    hook_point=HookPoint("resid_post", 1),
    steering=(edit(),),
    attach_position=6,
)


def ask(**more: Any) -> AdmitGeneration:
    return AdmitGeneration(generation_id="g1", kind="completion", tokens_prompt=3, sampling=SAMPLING, **more)


def intervention(story: Story) -> Intervention:
    (started,) = story.newest
    assert isinstance(started, ev.GenerationStarted)
    assert started.intervention_sha256 == intervention_sha256(started.intervention)
    return started.intervention


def shown(story: Story) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(sae.sae_id, sae.mode, tuple(e.feature for e in sae.steering)) for sae in intervention(story)]


def test_the_state_of_the_moment() -> None:
    story = given(*attached_steered()).when(ask(tag="mine"))
    story.then(
        ev.GenerationStarted(
            generation_id="g1",
            kind="completion",
            intervention=(ACTIVE_A,),
            intervention_sha256=intervention_sha256((ACTIVE_A,)),
            sampling=SAMPLING,
            tokens_prompt=3,
            tag="mine",
            sink_window=512,
        )
    )
    assert story.state.revision == 8, "texts do not move the state"
    assert list(story.state.generations) == ["g1"]


def test_frozen_for_its_life_whatever_happens_then() -> None:
    story = given(*attached_steered()).when(ask())
    digest = story.state.generations["g1"].intervention_sha256
    story = story.when(Steer(sae_id=A, features=())).when(Detach(sae_id=A))
    assert story.state.generations["g1"].intervention_sha256 == digest


def test_all_that_is_attached() -> None:
    assert shown(given(*BOTH).when(ask())) == [(A, "steer", (3,)), (B, "steer", ())]


def test_steering_out_of_force() -> None:
    story = given(*attached_steered()).when(Steer(sae_id=A, features=(edit(),), enabled=False))
    assert shown(story.when(ask())) == [(A, "steer", ())]


def test_baseline_is_no_intervention_at_all() -> None:
    assert intervention(given(*BOTH).when(ask(baseline=True))) == ()
    assert intervention(given(STARTED, loaded()).when(ask())) == ()


def test_own_steering_of_the_only_one() -> None:
    story = given(*attached_steered())
    assert shown(story.when(ask(steering=(edit(5),)))) == [(A, "steer", (5,))]
    assert shown(story.when(ask(steering=()))) == [(A, "steer", ())]
    assert isinstance(story.when(ask(steering=())).newest[0], ev.GenerationStarted)


def test_own_steering_among_several() -> None:
    story = given(*BOTH)
    story.when(ask(steering=(edit(5),))).refused("sae_ambiguous")
    story.when(ask(steering=(edit(5, sae_id=A), edit(6, sae_id=B)))).refused("sae_ambiguous")
    named = story.when(ask(steering=(edit(5, sae_id=B),)))
    assert shown(named) == [(A, "steer", ()), (B, "steer", (5,))]
    assert shown(story.when(ask(steering=()))) == [(A, "steer", ()), (B, "steer", ())]


def test_own_steering_without_an_sae() -> None:
    given(STARTED, loaded(), cached()).when(ask(steering=(edit(),))).refused("sae_not_attached")
    assert intervention(given(STARTED, loaded()).when(ask(steering=()))) == ()


def test_stopping_at_a_feature() -> None:
    (started,) = given(*attached_steered()).when(ask(stop_when=RequestedStop(31, 0.5), baseline=True)).newest
    assert isinstance(started, ev.GenerationStarted)
    assert started.stop_when == StopWhen(sae=replace(ACTIVE_A, steering=()), feature=31, above=0.5, exclude=("sink",))
    (named,) = given(*BOTH).when(ask(stop_when=RequestedStop(0, 0.5, B))).newest
    assert isinstance(named, ev.GenerationStarted)
    assert named.stop_when is not None
    assert named.stop_when.sae.sae_id == B
    given(*BOTH).when(ask(stop_when=RequestedStop(0, 0.5))).refused("sae_ambiguous")
    given(*BOTH).when(ask(stop_when=RequestedStop(32, 0.5, B))).refused("feature_out_of_range", sae_id=B)
    given(*BOTH).when(ask(stop_when=RequestedStop(0, 0.5, C))).refused("sae_not_found")
    given(STARTED, loaded()).when(ask(stop_when=RequestedStop(0, 0.5))).refused("sae_not_attached")


TURNS = (MessageSpan(role="user", first=0, stop=3, content=(1, 2)),)
BY_ROLE = edit(positions=Span(role="user"))
BARE = edit(exclude=("template",))


@pytest.mark.parametrize(
    ("edits", "turns", "kept"),
    [
        ((BY_ROLE,), TURNS, TURNS),
        ((BARE,), TURNS, TURNS),
        ((BARE,), (), ()),
        ((edit(),), TURNS, ()),
        ((edit(),), None, ()),
    ],
)
def test_turns_go_on_record_where_an_edit_asks_for_them(
    edits: tuple[Edit, ...], turns: tuple[MessageSpan, ...] | None, kept: tuple[MessageSpan, ...]
) -> None:
    (started,) = given(*attached_steered()).when(ask(steering=edits, turns=turns)).newest
    assert isinstance(started, ev.GenerationStarted)
    assert started.turns == kept


@pytest.mark.parametrize(
    ("edits", "turns", "code", "param"),
    [
        ((BY_ROLE,), (), "bad_request", "positions"),
        ((BY_ROLE,), None, "positions_unknown", "messages"),
        ((BARE,), None, "positions_unknown", "messages"),
    ],
)
def test_turns_that_cannot_be_told(
    edits: tuple[Edit, ...], turns: tuple[MessageSpan, ...] | None, code: str, param: str
) -> None:
    given(*attached_steered()).when(ask(steering=edits, turns=turns)).refused(code, param=param)


@pytest.mark.parametrize("edits", [(BY_ROLE,), (BARE,)])
def test_steering_that_no_chat_could_run_under_is_refused_at_once(edits: tuple[Edit, ...]) -> None:
    def model(**changes: Any) -> Story:
        return given(STARTED, loaded(**changes), cached(), attached())

    untold = model(has_chat_template=True, tells_messages=False)
    untold.when(Steer(A, edits)).refused("positions_unknown", param="positions")
    untold.when(Steer(A, (edit(),)))
    for told in (model(has_chat_template=True), model(has_chat_template=False, tells_messages=False)):
        (changed,) = told.when(Steer(A, edits)).newest
        assert isinstance(changed, ev.SteeringChanged)
        assert changed.features == edits


def test_a_reconstruction_that_no_chat_could_run_under_is_refused_at_once() -> None:
    """What an attachment passes through lasts as its edits do."""

    def model(**changes: Any) -> Story:
        return given(STARTED, loaded(**changes), cached())

    bare = Attach(A, mode="reconstruct", exclude=("template",))
    untold = model(has_chat_template=True, tells_messages=False)
    untold.when(bare).refused("positions_unknown", param="exclude")
    untold.when(Attach(A, mode="reconstruct", exclude=("special", "sink")))
    for told in (model(has_chat_template=True), model(has_chat_template=False, tells_messages=False)):
        (requested,) = told.when(bare).newest
        assert isinstance(requested, ev.AttachRequested)
        assert requested.exclude == ("template",)


def test_how_the_prompt_was_read_goes_on_record() -> None:
    how = Tokenization(prepend_bos=False, parse_special=False)
    (started,) = given(*attached_steered()).when(ask(tokenization=how)).newest
    assert isinstance(started, ev.GenerationStarted)
    assert started.tokenization == how


def test_watching_what_is_attached() -> None:
    (started,) = given(*BOTH).when(ask(watch=True, baseline=True)).newest
    assert isinstance(started, ev.GenerationStarted)
    assert [(sae.sae_id, sae.steering) for sae in started.watched] == [(A, ()), (B, ())]
    given(STARTED, loaded()).when(ask(watch=True)).refused("sae_not_attached")


def test_own_interventions() -> None:
    own = (RequestedIntervention(B, "reconstruct", (edit(6),)),)
    assert shown(given(*BOTH).when(ask(interventions=own))) == [(B, "reconstruct", (6,))]
    assert shown(given(*BOTH).when(ask(interventions=()))) == []
    turned = tuple(RequestedIntervention(sae_id) for sae_id in (B, A))
    assert shown(given(*BOTH).when(ask(interventions=turned))) == [(A, "steer", ()), (B, "steer", ())]


@pytest.mark.parametrize(
    ("own", "code"),
    [
        ((RequestedIntervention(C),), "sae_not_found"),
        ((RequestedIntervention(A), RequestedIntervention(A)), "conflicting_edits"),
        ((RequestedIntervention(A, steering=(edit(32),)),), "feature_out_of_range"),
        ((RequestedIntervention(A, steering=(edit(), edit())),), "conflicting_edits"),
        ((RequestedIntervention(A, steering=(edit(sae_id=B),)),), "bad_request"),
    ],
)
def test_own_interventions_that_cannot_be(own: tuple[RequestedIntervention, ...], code: str) -> None:
    given(*BOTH).when(ask(interventions=own)).refused(code)


def test_own_interventions_want_attached_saes() -> None:
    story = given(*BOTH, cached("c")).when(ask(interventions=(RequestedIntervention(C),)))
    story.refused("sae_not_attached", sae_id=C)
    leaving = given(*BOTH).when(Detach(sae_id=A))
    leaving.when(ask(interventions=(RequestedIntervention(A),))).refused("sae_not_attached")


def test_two_do_not_reconstruct_at_one_hook_point() -> None:
    story = given(TWO, loaded(), cached("a"), cached("b"), attached(A), attached(B))
    both = tuple(RequestedIntervention(sae_id, "reconstruct") for sae_id in (A, B))
    story.when(ask(interventions=both)).refused("conflicting_edits")
    assert len(intervention(given(*BOTH).when(ask(interventions=both)))) == 2
    read, written = HookPoint("mlp_in", 1), HookPoint("mlp_out", 1)
    transcoder = cached("a", hook_point=read, hook_point_out=written)
    story = given(TWO, loaded(), transcoder, cached("b", hook_point=written))
    story = story.when(Attach(A)).when(attach_done(8)).when(Attach(B)).when(attach_done(10, B))
    story.when(ask(interventions=both)).refused("conflicting_edits")


@pytest.mark.parametrize(
    "own",
    [
        {"baseline": True, "steering": ()},
        {"baseline": True, "interventions": ()},
        {"steering": (), "interventions": ()},
    ],
)
def test_one_wish_at_a_time(own: dict[str, Any]) -> None:
    given(*BOTH).when(ask(**own)).refused("bad_request", param="sae")


def test_the_digest_is_of_what_is_done_not_of_how_it_came() -> None:
    one = intervention_sha256((ACTIVE_A,))
    assert one == intervention_sha256((replace(ACTIVE_A, attach_position=99),))
    for other in (
        replace(ACTIVE_A, steering=(edit(3, 7.5),)),
        replace(ACTIVE_A, mode="reconstruct"),
        replace(ACTIVE_A, weights_sha256="other"),
        replace(ACTIVE_A, hook_point=HookPoint("resid_post", 2)),
    ):
        assert intervention_sha256((other,)) != one


LAST = 3 + SAMPLING.max_tokens - 2
"""The highest position of such a text: the last token that is made is not read."""


@pytest.mark.parametrize("span", [Span(tokens=(0, LAST + 1)), Span(from_=LAST + 1), Span(from_=LAST + 5, to=LAST + 9)])
@pytest.mark.parametrize("in_full", [True, False])
def test_an_edit_of_what_the_text_cannot_have_is_refused(span: Span, in_full: bool) -> None:
    edits = (edit(positions=span),)
    wish = {"interventions": (RequestedIntervention(sae_id=A, steering=edits),)} if in_full else {"steering": edits}
    given(STARTED, loaded(), cached(), attached()).when(ask(**wish)).refused("bad_request", param="positions")


@pytest.mark.parametrize("span", [Span(tokens=(0, LAST)), Span(from_=LAST), Span(to=LAST + 100), Span(from_=0)])
def test_an_edit_may_reach_behind_the_text(span: Span) -> None:
    story = given(STARTED, loaded(), cached(), attached()).when(ask(steering=(edit(positions=span),)))
    assert intervention(story)[0].steering[0].positions == span
