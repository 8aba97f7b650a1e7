"""Presets: saved for records, versions by position, applied as a whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Delete, DeletePreset, RequestedIntervention, SavePreset, Steer
from sae_actor.domain.events import PresetSae, PresetVersion
from sae_actor.domain.messages import AdmitGeneration, OwnIntervention, ResolvedPreset
from sae_actor.domain.refs import HookPoint, Intervention, Span, intervention_sha256
from sae_actor.domain.rules.admission import reading
from sae_actor.domain.rules.presets import MAX_PRESETS
from sae_actor.domain.views.difference import difference
from sae_actor.domain.views.explanation import Explaining
from sae_actor.domain.weights import WeightsFile
from sae_actor.errors import BadRequestError, ModelNotFoundError, SAENotAttachedError
from tests.domain.dsl import (
    DIED,
    STARTED,
    A,
    B,
    Step,
    Story,
    attach_done,
    attached_steered,
    attaching,
    cached,
    edit,
    given,
    loaded,
    restored,
)

SAMPLING = ev.Sampling(temperature=0.0, top_p=1.0, max_tokens=4, seed=1)
STRONG = edit(5, -20.0)
SAE = PresetSae(sae_id=A, weights_sha256="weights of a", steering=(STRONG,), asked=(STRONG,))
SAVED = ev.PresetSaved(name="calm", interventions=(SAE,))
ON_DISK: tuple[Step, ...] = (STARTED, loaded(), cached("a"))  # 1, 2–3, 4–5


def save(*interventions: RequestedIntervention, name: str = "calm") -> SavePreset:
    return SavePreset(name=name, interventions=interventions or (RequestedIntervention(A, steering=(STRONG,)),))


def ask(**more: Any) -> AdmitGeneration:
    return AdmitGeneration(generation_id="g1", kind="completion", tokens_prompt=3, sampling=SAMPLING, **more)


def started(story: Story) -> ev.GenerationStarted:
    (payload,) = story.newest
    assert isinstance(payload, ev.GenerationStarted)
    assert payload.intervention_sha256 == intervention_sha256(payload.intervention)
    return payload


def test_saved_for_a_record_that_is_not_attached() -> None:
    story = given(*ON_DISK).when(save()).then(SAVED)
    assert story.state.presets["calm"].position == story.state.revision == 6
    assert story.open_commands() == set()


def test_both_forms_and_the_weights_are_kept() -> None:
    asked = replace(STRONG, strength=0.5, unit="max", sae_id=A, exclude=("sink", "sink"))
    command = save(RequestedIntervention(A, steering=(asked,)))
    given(*ON_DISK).when(command).refused("bad_request", param="unit")
    resolved = ResolvedPreset(command=command, strengths=((replace(asked, strength=9.5, unit="raw"),),), weights=("w",))
    given(*ON_DISK).when(resolved).refused("sae_in_use", sae_id=A)
    story = given(*ON_DISK).when(replace(resolved, weights=("weights of a",)))
    (saved,) = story.newest
    assert isinstance(saved, ev.PresetSaved)
    (sae,) = saved.interventions
    assert [(each.strength, each.unit, each.exclude, each.sae_id) for each in (*sae.steering, *sae.asked)] == [
        (9.5, "raw", ("sink",), None),
        (0.5, "max", ("sink",), None),
    ]


def test_what_cannot_be_saved() -> None:
    story = given(*ON_DISK)
    story.when(save(RequestedIntervention(B))).refused("sae_not_found", sae_id=B)
    story.when(save(RequestedIntervention(A, steering=(edit(99),)))).refused("feature_out_of_range", feature=99)
    story.when(save(RequestedIntervention(A), RequestedIntervention(A))).refused("conflicting_edits")
    twice = RequestedIntervention(A, steering=(edit(strength=1.0), edit(strength=2.0)))
    story.when(save(twice)).refused("conflicting_edits")


def test_at_most_a_thousand() -> None:
    full = given(*ON_DISK, *(ev.PresetSaved(name=f"p{n}", interventions=()) for n in range(MAX_PRESETS)))
    full.when(save()).refused("bad_request", param="name")
    full.when(save(name="p7")).then_types(ev.PresetSaved)
    full.when(DeletePreset(name="p7")).when(save()).then_types(ev.PresetSaved)


def test_a_request_runs_under_it_and_the_log_has_it_resolved() -> None:
    story = given(*attached_steered(), SAVED).when(ask(preset="calm"))
    payload = started(story)
    assert payload.preset == PresetVersion(name="calm", position=9)
    assert [(sae.sae_id, sae.steering, sae.hook_point) for sae in payload.intervention] == [
        (A, (STRONG,), HookPoint("resid_post", 1))
    ]
    own = given(*attached_steered()).when(ask(interventions=(RequestedIntervention(A, steering=(STRONG,)),)))
    assert started(own).intervention_sha256 == payload.intervention_sha256
    assert payload.own_steering
    assert not payload.baseline


def test_without_a_name_nothing_of_it_is_on_record() -> None:
    assert started(given(*attached_steered(), SAVED).when(ask())).preset is None


def test_versions_are_positions() -> None:
    story = given(*attached_steered(), SAVED, replace(SAVED, interventions=())).when(ask(preset="calm"))
    assert started(story).preset == PresetVersion(name="calm", position=10)
    assert started(story).intervention == ()


@pytest.mark.parametrize("other", [{"baseline": True}, {"steering": ()}, {"interventions": ()}])
def test_one_intervention_at_most(other: dict[str, Any]) -> None:
    story = given(*attached_steered(), SAVED)
    story.when(ask(preset="calm", **other)).refused("bad_request", param="sae")
    with pytest.raises(BadRequestError):
        reading(story.state, A, (), OwnIntervention(preset="calm", **other))


def test_an_unknown_one() -> None:
    story = given(*attached_steered())
    story.when(ask(preset="calm")).refused("model_not_found", preset="calm")
    with pytest.raises(ModelNotFoundError):
        reading(story.state, A, (), OwnIntervention(preset="calm"))
    story.when(DeletePreset(name="calm")).refused("preset_not_found", name="calm")


def test_never_in_part() -> None:
    two = replace(SAVED, interventions=(SAE, replace(SAE, sae_id=B, weights_sha256="weights of b")))
    story = given(*attached_steered(), cached("b"), two)
    story.when(ask(preset="calm")).refused("sae_not_attached", missing=(B,))
    with pytest.raises(SAENotAttachedError) as refused:
        reading(story.state, A, (), OwnIntervention(preset="calm"))
    assert refused.value.fields["missing"] == (B,)
    assert story.state.presets["calm"].missing(story.state) == (B,)
    assert story.state.presets["calm"].incompatible(story.state) == ()


def test_other_weights_are_refused() -> None:
    story = given(*attached_steered(), replace(SAVED, interventions=(replace(SAE, weights_sha256="others"),)))
    story.when(ask(preset="calm")).refused("sae_incompatible", incompatible=(A,))


def test_the_same_weights_under_the_other_form_of_their_digest() -> None:
    held = (WeightsFile("a/sae_weights.safetensors", "b" * 64),)
    story = given(
        *attached_steered(), replace(SAVED, interventions=(replace(SAE, weights_sha256="b" * 64, weights_files=held),))
    )
    story.when(ask(preset="calm")).refused("sae_incompatible")
    over_list = replace(
        SAE, weights_sha256="f7ec2948d73e4fc56a948a4e6daafe810d1196e3036c54af6f41501d1498be6b", weights_files=held
    )
    known = given(STARTED, loaded(), cached("a"), attaching(), attach_done(6, weights_sha256="b" * 64))
    known.and_then(replace(SAVED, interventions=(over_list,))).when(ask(preset="calm")).then_types(ev.GenerationStarted)


def test_deleting_the_sae_leaves_it() -> None:
    story = (
        given(*ON_DISK, SAVED)
        .when(Delete(sae_id=A))
        .and_then(ev.SaeDeleted(request_position=7, sae_id=A, freed_bytes=1))
    )
    assert list(story.state.presets) == ["calm"]
    story.when(ask(preset="calm")).refused("sae_not_attached", missing=(A,))
    story.when(save()).refused("sae_not_found")


def test_after_a_restart_it_waits_for_what_comes_back() -> None:
    story = given(*attached_steered(), SAVED, DIED, restored(2))
    story.when(ask(preset="calm")).refused("not_ready")
    given(STARTED, loaded(), cached("a"), SAVED, attaching()).when(ask(preset="calm")).refused("sae_not_attached")


def test_a_position_that_cannot_be_reached() -> None:
    far = replace(SAE, steering=(edit(positions=Span(tokens=(9,))),))
    story = given(*attached_steered(), replace(SAVED, interventions=(far,)))
    story.when(ask(preset="calm")).refused("bad_request", param="positions")


def test_reading_under_it() -> None:
    story = given(*attached_steered(), SAVED)
    found: Intervention
    found, _, _ = reading(story.state, A, (), OwnIntervention(preset="calm"))
    assert [sae.steering for sae in found] == [(STRONG,)]


def test_an_old_answer_keeps_its_explanation() -> None:
    story = given(*attached_steered(), SAVED).when(ask(preset="calm"))
    first = explained(story)
    assert first.preset == PresetVersion(name="calm", position=9)
    assert first.intervention[0].steering_from == "preset"
    assert [each.type for each in first.intervention[0].since][-1] == "PresetSaved"
    assert first.digest.agrees
    assert first.digest.state_agrees
    for change in (
        save(RequestedIntervention(A, steering=(edit(9),))),
        DeletePreset(name="calm"),
        Steer(sae_id=A, features=()),
    ):
        story = story.when(change)
        assert explained(story) == first


def explained(story: Story) -> Any:
    explaining = Explaining(generation_id="g1")
    for each in story.events:
        explaining.feed(each)
    (view,) = explaining.views.values()
    return view


def test_what_changed_between_two_positions() -> None:
    before = given(*ON_DISK)
    saved = before.and_then(SAVED)
    changed = saved.and_then(replace(SAVED, description="less"))
    assert [each["name"] for each in difference(before.state, saved.state)["presets"]["added"]] == ["calm"]
    (entry,) = difference(saved.state, changed.state)["presets"]["changed"]
    assert entry == {"name": "calm", "changes": {"description": {"before": None, "after": "less"}}}
    assert [each["name"] for each in difference(saved.state, before.state)["presets"]["removed"]] == ["calm"]
