"""Where a hook that the SAE's files name lies on the loaded model: beside which norm, and of which kind of norm."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach
from sae_actor.domain.placement import reread
from sae_actor.domain.refs import ActiveSae, HookPoint, SaeDescription, intervention_sha256
from sae_actor.domain.views.saes import sae_view
from tests.domain.dsl import STARTED, A, Story, cached, description, given, loaded

GAIN, NORM = HookPoint("mlp_in", 1, "gain"), HookPoint("mlp_in", 1, "norm")
LLAMA: dict[str, Any] = {"before": {"mlp_in": ("gain", "norm")}}
GEMMA: dict[str, Any] = {"before": dict.fromkeys(("mlp_in", "attn_out", "mlp_out"), ("gain", "norm"))}
GPT2: dict[str, Any] = {**LLAMA, "layer_norm": True}
PHI: dict[str, Any] = {"before": {"mlp_in": ("gain",)}, "layer_norm": True}
NORMALIZED = "blocks.1.ln2.hook_normalized"


def attached(model: dict[str, Any], command: Attach | None = None, **sae: Any) -> Story:
    return given(STARTED, loaded(**model), cached(hooks_read=1, **sae)).when(command or Attach(sae_id=A))


def place(story: Story) -> tuple[HookPoint, HookPoint | None]:
    requested = story.newest[0]
    assert isinstance(requested, ev.AttachRequested)
    return requested.hook_point, requested.hook_point_out


def test_before_the_gain_of_an_rms_norm() -> None:
    assert place(attached(LLAMA, hook_name=NORMALIZED, hook_point=GAIN)) == (GAIN, None)


def test_before_the_gain_of_a_layer_norm_only_where_it_had_been_folded_away() -> None:
    """Releases of the library differ in what the name means: what could be two places is refused."""
    attached(GPT2, hook_name=NORMALIZED, hook_point=GAIN).refused("sae_incompatible", hook_name=NORMALIZED)
    assert place(attached(GPT2, hook_name=NORMALIZED, hook_point=GAIN, norms_folded=True)) == (GAIN, None)


@pytest.mark.parametrize("point", [GAIN, HookPoint("mlp_in", 1)])
def test_whoever_knows_the_release_says_which(point: HookPoint) -> None:
    story = attached(GPT2, Attach(sae_id=A, hook_point=point), hook_name=NORMALIZED, hook_point=GAIN)
    assert place(story) == (point, None)
    assert isinstance(story.newest[0], ev.AttachRequested)
    assert story.newest[0].warnings == ()


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out"])
def test_what_a_module_returns_is_what_it_adds_where_no_norm_follows(kind: Any) -> None:
    point = HookPoint(kind, 1, "norm")
    assert place(attached(LLAMA, hook_point=point)) == (HookPoint(kind, 1), None)
    assert place(attached(GEMMA, hook_point=point)) == (point, None)
    transcoder: dict[str, Any] = {
        "hook_point": HookPoint("mlp_in", 1),
        "hook_point_out": point,
        "architecture": "transcoder",
    }
    assert place(attached(LLAMA, **transcoder)) == (HookPoint("mlp_in", 1), HookPoint(kind, 1))
    assert place(attached(GEMMA, **transcoder)) == (HookPoint("mlp_in", 1), point)


def test_a_norm_that_the_model_lacks_has_no_near_side() -> None:
    attached(LLAMA, hook_point=HookPoint("mlp_out", 1, "gain")).refused("sae_incompatible", kind="mlp_out")
    attached(PHI, hook_point=NORM).refused("sae_incompatible", kind="mlp_in")


def test_another_side_of_the_norm_is_told() -> None:
    elsewhere = Attach(sae_id=A, hook_point=HookPoint("mlp_in", 1))
    story = attached(LLAMA, elsewhere, hook_name=NORMALIZED, hook_point=GAIN)
    assert isinstance(story.newest[0], ev.AttachRequested)
    assert story.newest[0].warnings == ("trained on mlp_in before the gain of its norm, attached to mlp_in",)


def test_a_layer_keeps_the_side() -> None:
    story = attached(LLAMA, Attach(sae_id=A, layer=3), hook_name=NORMALIZED, hook_point=GAIN)
    assert place(story) == (HookPoint("mlp_in", 3, "gain"), None)


def test_a_named_hook_that_is_no_hook_point_is_refused_by_its_name() -> None:
    named: dict[str, Any] = {"hook_name": "blocks.1.ln1.hook_normalized", "hook_point": None}
    attached(LLAMA, **named).refused("sae_unsupported", hook_name="blocks.1.ln1.hook_normalized")
    told = Attach(sae_id=A, hook_point=HookPoint("resid_pre", 1))
    assert place(attached(LLAMA, told, **named)) == (HookPoint("resid_pre", 1), None)


def test_a_transcoder_without_an_output_is_not_attached_to_its_input() -> None:
    """Its widths are equal, as those of an SAE are."""
    attached(LLAMA, hook_point=HookPoint("mlp_in", 1), architecture="skip_transcoder").refused("sae_incompatible")


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post", "attn_z", "mlp_act"])
def test_what_comes_out_of_no_norm_has_no_side(kind: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=kind):
        msgspec.convert({"kind": kind, "layer": 1, "before": "gain"}, HookPoint)


# — what older versions wrote —


def old(**fields: Any) -> SaeDescription:
    return description(hooks_read=0, **fields)


@pytest.mark.parametrize(
    ("sae", "point", "out"),
    [
        (old(hook_name=NORMALIZED, hook_point=HookPoint("mlp_in", 1)), GAIN, None),
        (old(hook_name="blocks.1.hook_mlp_in", hook_point=HookPoint("mlp_in", 1)), NORM, None),
        (
            old(
                hook_name="blocks.1.hook_mlp_in",
                hook_point=HookPoint("mlp_in", 1),
                hook_point_out=HookPoint("mlp_out", 1),
            ),
            HookPoint("resid_mid", 1),
            HookPoint("mlp_out", 1),
        ),
        (
            old(hook_name="blocks.1.mlp.hook_out", hook_point=HookPoint("mlp_out", 1)),
            HookPoint("mlp_out", 1, "norm"),
            None,
        ),
        (
            old(hook_name="layers.1.self_attn", hook_point=HookPoint("attn_out", 1)),
            HookPoint("attn_out", 1, "norm"),
            None,
        ),
        (
            old(hook_name="layers.1.mlp", hook_point=HookPoint("mlp_in", 1), hook_point_out=HookPoint("mlp_out", 1)),
            HookPoint("mlp_in", 1),
            HookPoint("mlp_out", 1, "norm"),
        ),
        (old(hook_name="blocks.1.hook_mlp_out", hook_point=HookPoint("mlp_out", 1)), HookPoint("mlp_out", 1), None),
        (old(), HookPoint("resid_post", 1), None),
        (old(hook_name=None, hook_point=None), None, None),
    ],
)
def test_a_record_of_an_older_version_is_read_again(
    sae: SaeDescription, point: HookPoint | None, out: HookPoint | None
) -> None:
    """What it said is not what its hook's name means: the next attach goes where the name means."""
    now = reread(sae)
    assert (now.hook_point, now.hook_point_out) == (point, out)
    assert reread(now) == now
    changes = {name: getattr(sae, name) for name in ("hook_name", "hook_point", "hook_point_out")}
    story = given(STARTED, loaded(**GEMMA), cached(**changes))
    assert sae_view(story.state.saes[A], story.state).hook_point == point
    if point is not None:
        assert place(story.when(Attach(sae_id=A))) == (point, out)


def then(model: dict[str, Any], name: str, at: HookPoint, out: HookPoint | None = None, **sae: Any) -> list[str]:
    """The warnings of an SAE that an older version described, and attached `at` and `out`."""
    changes = {"hook_name": name, "hook_point": at, "hook_point_out": out, **sae}
    asked = ev.AttachRequested(sae_id=A, hook_point=at, hook_point_out=out, mode="steer", dtype="float32")
    story = given(STARTED, loaded(**model), cached(**changes)).and_then(asked)
    came = ev.SaeAttached(
        request_position=story.position,
        sae_id=A,
        hook_point=at,
        hook_point_out=out,
        weights_sha256="weights of a",
        memory_bytes=1,
        device_bytes=1,
    )
    story = story.and_then(came)
    return list(sae_view(story.state.saes[A], story.state).warnings)


def test_what_is_attached_where_an_older_version_took_a_name_for_is_told() -> None:
    """It stays there, as the log says, but not in silence."""
    again = "attach it again, with replace, to have it there"
    old_place = HookPoint("mlp_in", 1)
    doubt = (
        "ln2.hook_normalized lies before the norm's own weight in the library it was trained with; nothing in the "
        "files says whether that weight was folded away"
    )
    assert then(LLAMA, NORMALIZED, old_place, warnings=("else", doubt)) == [
        "else",
        f"attached to mlp_in.1, which an older version took {NORMALIZED} for; it means mlp_in.1 before the gain of its "
        f"norm: {again}",
    ]
    assert then(LLAMA, "blocks.1.hook_mlp_in", old_place, HookPoint("mlp_out", 1)) == [
        "attached to mlp_in.1 and mlp_out.1, which an older version took blocks.1.hook_mlp_in for; it means "
        f"resid_mid.1 and mlp_out.1: {again}"
    ]
    module: Any = ("blocks.1.mlp.hook_out", HookPoint("mlp_out", 1))
    assert then(LLAMA, *module) == []
    (told,) = then(GEMMA, *module)
    assert "it means mlp_out.1 before its norm" in told


def test_what_is_attached_where_its_name_means_is_not_told() -> None:
    assert then(LLAMA, "blocks.1.hook_resid_post", HookPoint("resid_post", 1)) == []
    assert then(LLAMA, NORMALIZED, GAIN, hooks_read=1) == []


def test_what_was_attached_stays_where_it_was() -> None:
    """The event names the place, and means it: without `before`, the activation itself."""
    stored = b'{"sae_id":"a","hook_point":{"kind":"mlp_in","layer":1},"mode":"steer","dtype":"float32"}'
    payload = msgspec.json.decode(stored, type=ev.AttachRequested)
    assert payload.hook_point == HookPoint("mlp_in", 1)
    assert b'"hook_point":{"kind":"mlp_in","layer":1}' in msgspec.json.encode(payload)


def test_the_side_is_part_of_what_an_intervention_is_known_by() -> None:
    plain = ActiveSae(sae_id="a", weights_sha256="0" * 64, hook_point=HookPoint("mlp_in", 1))
    sided = msgspec.structs.replace(plain, hook_point=GAIN)
    assert intervention_sha256((plain,)) != intervention_sha256((sided,))
    shown = (
        '[{"hook_point":{"kind":"mlp_in","layer":1},"hook_point_out":null,"mode":"steer","sae_id":"a","steering":[],'
        f'"weights_sha256":"{"0" * 64}"}}]'
    )
    assert intervention_sha256((plain,)) == hashlib.sha256(shown.encode()).hexdigest()
