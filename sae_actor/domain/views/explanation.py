"""Explain from the log alone what was active for one answer: the fold of `log explain` and `/api/generations`."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import to_builtins

from .. import events as ev
from ..events import ERASED, Event
from ..refs import ActiveSae, FinishReason, Intervention, intervention_sha256
from ..state import State
from ..structs import filled
from ..weights import WeightsFiles, of_record
from ..words import edit_in_words
from .difference import environment_sha256
from .explained import (
    Agreement,
    ExplainedEdit,
    ExplainedGeneration,
    ExplainedModel,
    ExplainedSae,
    GenerationState,
    SteeringFrom,
    StopCondition,
)
from .provenance import Cited, Provenance, cited
from .recorded import Recorded, Recordings

_STATES: dict[FinishReason, GenerationState] = {
    "error": "failed",
    "cancelled": "cancelled",
    "interrupted": "interrupted",
}
"""Finish reason → state of a generation that did not end by itself; any other reason means `finished`."""


class Explaining(Recordings):
    """Explains the requested generations."""

    def __init__(
        self,
        *,
        generation_id: str | None = None,
        tag: str | None = None,
        after: int = 0,
        limit: int | None = None,
        principal: str | None = None,
        live: bool = True,
    ) -> None:
        """live: the service that runs the generations is there; without it, one that has no end on record will get
        none."""
        generation_ids = None if generation_id is None else (generation_id,)
        super().__init__(generation_ids, tag=tag, after=after, limit=limit, principal=principal)
        self._open_state: GenerationState = "running" if live else "interrupted"

    @property
    def views(self) -> dict[int, ExplainedGeneration]:
        """Those found so far, by the position at which each began."""
        return {position: explain(each, self._open_state) for position, each in self.found.items()}


def explain(text: Recorded, open_state: GenerationState) -> ExplainedGeneration:
    """Everything that the log records of one generation.

    Without the payload of its beginning, `intervention` is the default one at that time, and `digest.agrees` says
    whether the generation ran under it. open_state: `state` of a generation without an end on record.
    """
    known, began, started, finished = text.known, text.began, text.started, text.finished
    state = known.state
    if started is not None:
        intervention, recorded = started.intervention, started.intervention_sha256
        recomputed = text.digest
    else:
        intervention = state.in_force
        recorded = "" if finished is None else finished.intervention_sha256
        recomputed = intervention_sha256(intervention)
    brought = _brought(known, began, started)
    receipt = None if finished is None else finished.receipt
    stop = None if started is None else started.stop_when
    return filled(
        ExplainedGeneration,
        started,
        finished,
        receipt,
        principal=began.principal,
        position=began.position,
        started=cited(began),
        finished=cited(text.ended) if text.ended else None,
        state=_STATES.get(finished.finish_reason, "finished") if finished else open_state,
        erased=bytes(began.data) == ERASED,
        readable=started is not None,
        model=_model(known),
        attached=tuple(a.sae_id for a in state.attached),
        intervention=tuple(_active(sae, known, *brought) for sae in intervention),
        intervention_sha256=recorded,
        digest=Agreement(
            recomputed=recomputed,
            agrees=recorded == recomputed and (finished is None or finished.intervention_sha256 == recomputed),
            state_agrees=_state_agrees(started, intervention, state),
        ),
        watched=tuple(sae.sae_id for sae in started.watched) if started else (),
        stop_when=filled(StopCondition, stop, sae_id=stop.sae.sae_id) if stop else None,
        edited=finished.edited if finished else (),
        excluded=finished.excluded if finished else (),
        salt=(finished.salt if finished else None) or None,
        prompt_sha256=(finished.prompt_sha256 if finished else None) or None,
        output_sha256=(finished.output_sha256 if finished else None) or None,
    )


def _brought(
    known: Provenance, began: Event, started: ev.GenerationStarted | None
) -> tuple[SteeringFrom, Cited | None]:
    """Whose the steering is, and the event that it comes with, unless the server's."""
    if started is None or not started.own_steering:
        return "server", None
    if started.preset is None:
        return "request", cited(began)
    saved = known.presets.get(started.preset.name)
    same = saved is not None and saved.position == started.preset.position
    return "preset", saved if same else cited(began)


def _state_agrees(started: ev.GenerationStarted | None, intervention: Intervention, state: State) -> bool | None:
    """Whether the state that the log comes to is what the record of the beginning says was active."""
    if started is None:
        return None
    if started.baseline:
        return intervention == ()
    if not started.own_steering:
        return intervention == state.in_force
    places = {_place(sae) for sae in state.in_force}
    return all(_place(sae) in places for sae in intervention)


def _place(sae: ActiveSae) -> tuple[object, ...]:
    return sae.sae_id, sae.weights_sha256, sae.hook_point, sae.hook_point_out, sae.attach_position


def _model(known: Provenance) -> ExplainedModel | None:
    model = known.state.model
    if model is None or model.facts is None:
        return None
    facts = model.facts
    return filled(
        ExplainedModel,
        facts,
        files=facts.environment.get("model_files"),
        tokenizer_sha256=facts.environment.get("tokenizer_sha256"),
        chat_template_sha256=facts.environment.get("chat_template_sha256"),
        environment_sha256=environment_sha256(facts.environment),
        since=known.model,
    )


def _active(sae: ActiveSae, known: Provenance, whose: SteeringFrom, cause: Cited | None) -> ExplainedSae:
    attachment = next((a for a in known.state.attachments if a.request_position == sae.attach_position), None)
    came, completed = known.downloads.get((sae.sae_id, sae.weights_sha256), (None, None))
    record = known.state.saes.get(sae.sae_id)
    steered = cause or known.steered.get(sae.sae_id)
    since = [came, *known.attached.get(sae.attach_position, ()), *_new(steered, known, sae)]
    return filled(
        ExplainedSae,
        sae,
        record,
        completed.sae if completed else None,
        commit=completed.commit if completed else None,
        files=completed.files if completed else (),
        weights_files=_weights(completed),
        passes=tuple(sorted(sae.passes)) if sae.mode == "reconstruct" else None,
        dtype=attachment.dtype if attachment else None,
        steering=tuple(filled(ExplainedEdit, edit, words=edit_in_words(to_builtins(edit))) for edit in sae.steering),
        steering_from=whose,
        steering_enabled=True if whose != "server" else attachment and attachment.enabled,
        since=tuple(each for each in since if each is not None),
    )


def _weights(completed: ev.DownloadCompleted | None) -> WeightsFiles:
    if completed is None:
        return ()
    return completed.weights_files or of_record(completed.files, completed.weights_sha256)


def _new(steered: Cited | None, known: Provenance, sae: ActiveSae) -> Iterable[Cited]:
    """The event that set the steering, unless it is one of the attachment's own."""
    if steered is not None and steered not in known.attached.get(sae.attach_position, ()):
        yield steered
