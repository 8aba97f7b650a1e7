"""Sweeps: what a variant means is frozen when it is asked for, under the state of that turn."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Detach, RequestedIntervention, RequestedVariant, RequestRun, Steer
from sae_actor.domain.events import RunTexts
from sae_actor.domain.measuring.waiting import waits_for
from sae_actor.domain.refs import intervention_sha256
from sae_actor.domain.views.runs import total_of
from tests.domain.dsl import A, Story, attached_steered, edit, given

STRONG = edit(5, -20.0)
TEXTS = (RunTexts(role="prompts", count=3, sha256="0" * 64), RunTexts(role="continuations", count=2, sha256="1" * 64))
VARIANTS = (
    RequestedVariant(name="server"),
    RequestedVariant(name="bare", baseline=True),
    RequestedVariant(name="none", steering=()),
    RequestedVariant(name="own", interventions=(RequestedIntervention(A, steering=(STRONG,)),)),
    RequestedVariant(name="short", steering=(STRONG,)),
)


def sweep(*variants: RequestedVariant, **more: Any) -> RequestRun:
    asked: dict[str, Any] = {"kind": "sweep", "spec": {}, "texts": TEXTS, "variants": variants or VARIANTS, **more}
    return RequestRun(run_id="run-1", asked_sha256="0" * 64, **asked)


def requested(story: Story) -> ev.RunRequested:
    (payload,) = story.newest
    assert isinstance(payload, ev.RunRequested)
    return payload


def test_each_variant_is_frozen_as_it_is_now() -> None:
    story = given(*attached_steered()).when(sweep(seeds=(1, 2)))
    made = requested(story)
    steering = story.attachment().steering
    assert steering
    frozen = {each.name: [(sae.sae_id, sae.steering) for sae in each.intervention] for each in made.variants}
    own = [(A, (replace(STRONG),))]
    assert frozen == {"server": [(A, steering)], "bare": [], "none": [], "own": own, "short": own}
    assert [each.baseline for each in made.variants] == [False, True, False, False, False]
    for each in made.variants:
        assert each.intervention_sha256 == intervention_sha256(each.intervention)
    assert [sae.sae_id for sae in made.saes] == [A]
    later = story.when(Steer(A, ()))
    run = later.state.runs["run-1"]
    assert run.variants == made.variants, "what is steered later has no part in it"
    assert total_of(run, later.state) == 3 * 5 * 2, "continuations are no prompts"


def test_it_waits_for_what_changes_its_texts_alone() -> None:
    story = given(*attached_steered())
    bare = story.when(sweep(VARIANTS[1], VARIANTS[2]))
    assert requested(bare).saes == ()
    gone = bare.when(Detach(A))
    assert waits_for(gone.state.runs["run-1"], gone.state) is None
    needing = story.when(sweep()).when(Detach(A))
    assert waits_for(needing.state.runs["run-1"], needing.state) == f"{A} is not attached"


def test_one_seed_is_made_of_the_id() -> None:
    seeds = [
        requested(given(*attached_steered()).when(replace(sweep(), run_id=name))).seeds for name in ("a", "b", "a")
    ]
    assert [len(each) for each in seeds] == [1, 1, 1]
    assert seeds[0] == seeds[2] != seeds[1]
    assert all(0 <= seed < 2**31 for (seed,) in seeds)


def test_what_the_rules_refuse() -> None:
    story = given(*attached_steered())
    story.when(sweep(RequestedVariant(name="a", preset="none"))).refused("model_not_found")
    story.when(sweep(RequestedVariant(name="a", steering=(edit(10**6, 1.0),)))).refused("feature_out_of_range")
    story.when(sweep(RequestedVariant(name="a", expect_position=1))).refused("precondition_failed")
    story.when(sweep(RequestedVariant(name="a", baseline=True, steering=()))).refused("bad_request")


def test_the_digest_is_of_what_was_asked() -> None:
    """Of the `Run`: what its id, texts and strengths come to is no part of it."""
    one = sweep()
    assert one.digest() == replace(one, run_id="run-2", variants=(), texts=(), seeds=(1,)).digest()
    assert one.digest() != replace(one, asked_sha256="1" * 64).digest()
