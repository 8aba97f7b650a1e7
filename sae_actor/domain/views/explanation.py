"""What was active for one answer, told from the log alone: the fold behind `log explain` and `/api/generations`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .. import events as ev
from ..events import ERASED, Event
from ..refs import ActiveSae, Intervention, canonical_sha256, intervention_sha256
from ..state import AttachmentState, State
from ..weights import WeightsFiles, of_record
from ..words import edit_in_words
from .difference import environment_sha256
from .provenance import Cited, Provenance, cited, follow, payload_of

View = dict[str, Any]

_STATES = {"error": "failed", "cancelled": "cancelled", "interrupted": "interrupted"}
"""Finish reason → state of a text that did not come to an end of its own; any other is `finished`."""


class Explaining:
    """Follows a log and explains the texts that are asked for, each once its end is on record.

    Feed every event from the first on. `views` are those found so far, by the position at which each began.
    """

    def __init__(
        self,
        *,
        generation_id: str | None = None,
        tag: str | None = None,
        after: int = 0,
        limit: int | None = None,
        live: bool = True,
    ) -> None:
        """Only this text, only those with this tag, only those that began behind `after`, at most so many.

        live: the service that makes the texts is there; without it, one that has no end on record will get none.
        """
        self.views: dict[int, View] = {}
        self._generation_id = generation_id
        self._tag = tag
        self._after = after
        self._limit = limit
        self._open = "running" if live else "interrupted"
        self._known = Provenance()
        self._begun: dict[str, tuple[Provenance, Event, ev.GenerationStarted]] = {}
        """Asked for, without an end yet."""
        self._erased: dict[int, tuple[Provenance, Event]] = {}
        """Beginnings whose payload is gone, or cannot be read: which text each was is told by its end alone."""

    @property
    def complete(self) -> bool:
        """Whether further events can change nothing."""
        wanted = 1 if self._generation_id is not None else self._limit
        waiting = self._begun or any(position in self.views for position in self._erased)
        return wanted is not None and len(self.views) >= wanted and not waiting

    @property
    def erased(self) -> tuple[int, ...]:
        """Beginnings without a payload that no end has told about."""
        return tuple(self._erased)

    def feed(self, event: Event) -> None:
        payload = payload_of(event)
        if event.type == "GenerationStarted" and payload is None:
            self._erased[event.position] = (self._known, event)
            if self._generation_id is None and self._tag is None and self._fits(None, event.position):
                self.views[event.position] = explain(self._known, event, None, open_state=self._open)
        elif isinstance(payload, ev.GenerationStarted):
            if self._tag in (None, payload.tag) and self._fits(payload.generation_id, event.position):
                self._begun[payload.generation_id] = (self._known, event, payload)
                self.views[event.position] = explain(self._known, event, payload, open_state=self._open)
        elif isinstance(payload, ev.GenerationFinished):
            self._end(event, payload)
        self._known = follow(self._known, event)

    def _end(self, event: Event, payload: ev.GenerationFinished) -> None:
        begun = self._begun.pop(payload.generation_id, None)
        if begun is not None:
            known, started, beginning = begun
            self.views[started.position] = explain(known, started, beginning, event, payload)
            return
        position = payload.started_position
        erased = self._erased.pop(position, None)
        if erased is not None and (position in self.views or self._generation_id == payload.generation_id):
            self.views[position] = explain(*erased, None, event, payload)

    def _fits(self, generation_id: str | None, position: int) -> bool:
        full = self._limit is not None and len(self.views) >= self._limit
        return self._generation_id in (None, generation_id) and position > self._after and not full


def explain(
    known: Provenance,
    began: Event,
    started: ev.GenerationStarted | None,
    ended: Event | None = None,
    finished: ev.GenerationFinished | None = None,
    *,
    open_state: str = "running",
) -> View:
    """All that the log says of one text, as plain values ready for JSON.

    known: as it was before the text began. started: None where its payload was erased or is of a later version; then
    `intervention` is what was in force for whoever asked for nothing else, and `digest.agrees` whether it was that.
    open_state: `state` of a text without an end on record.
    """
    state = known.state
    if started is not None:
        intervention, recorded = started.intervention, started.intervention_sha256
        recomputed = digest_of_stored(began)
    else:
        intervention = state.in_force
        recorded = "" if finished is None else finished.intervention_sha256
        recomputed = intervention_sha256(intervention)
    brought = started is not None and started.own_steering
    receipt = None if finished is None else finished.receipt
    return {
        "generation_id": _first(started, finished, "generation_id"),
        "kind": started and started.kind,
        "tag": started and started.tag,
        "principal": began.principal,
        "position": began.position,
        "started": _plain(cited(began)),
        "finished": None if ended is None else _plain(cited(ended)),
        "state": open_state if finished is None else _STATES.get(finished.finish_reason, "finished"),
        "erased": bytes(began.data) == ERASED,
        "readable": started is not None,
        "model": _model(known),
        "baseline": started and started.baseline,
        "own_steering": started and started.own_steering,
        "attached": [a.sae_id for a in state.attached],
        "intervention": [_active(sae, known, brought=brought, began=began) for sae in intervention],
        "intervention_sha256": recorded,
        "digest": {
            "recomputed": recomputed,
            "agrees": recorded == recomputed and (finished is None or finished.intervention_sha256 == recomputed),
            "state_agrees": _state_agrees(started, intervention, state),
        },
        "watched": [] if started is None else [sae.sae_id for sae in started.watched],
        "stop_when": _stop_when(started),
        "deterministic": started and started.deterministic,
        "sink_window": started and started.sink_window,
        "sampling": None if started is None else _plain(started.sampling),
        "tokenization": None if started is None else _plain(started.tokenization),
        "reasoning": _plain(started and started.reasoning),
        "tokens_prompt": started.tokens_prompt if started is not None else receipt and receipt.tokens_prompt,
        "tokens_generated": receipt and receipt.tokens_generated,
        "finish_reason": finished and finished.finish_reason,
        "error": None if finished is None else _plain(finished.error),
        "receipt": _plain(receipt),
        "edited": [] if finished is None else _plain(finished.edited),
        "excluded": [] if finished is None else _plain(finished.excluded),
        "batch": _plain(finished and finished.batch),
        "salt": (finished and finished.salt) or None,
        "prompt_sha256": (finished and finished.prompt_sha256) or None,
        "output_sha256": (finished and finished.output_sha256) or None,
        "prompt_token_ids": _plain(finished and finished.prompt_token_ids),
        "output_token_ids": _plain(finished and finished.output_token_ids),
        "text": finished and finished.text,
        "left_out": _plain(finished and finished.left_out),
    }


def digest_of_stored(began: Event) -> str:
    """`intervention_sha256` over the stored JSON, not over what this version reads in it: a field that was added to
    edits since then has no part in a digest of before."""
    stored: list[View] = msgspec.json.decode(began.data)["intervention"]
    return canonical_sha256(stored)


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


def _model(known: Provenance) -> View | None:
    model = known.state.model
    if model is None or model.facts is None:
        return None
    facts = model.facts
    return {
        "model_id": facts.model_id,
        "revision": facts.revision,
        "commit": facts.commit,
        "dtype": facts.dtype,
        "device": facts.device,
        "files": facts.environment.get("model_files"),
        "tokenizer_sha256": facts.environment.get("tokenizer_sha256"),
        "chat_template_sha256": facts.environment.get("chat_template_sha256"),
        "environment_sha256": environment_sha256(facts.environment),
        "since": _plain(known.model),
    }


def _active(sae: ActiveSae, known: Provenance, *, brought: bool, began: Event) -> View:
    attachment = next((a for a in known.state.attachments if a.request_position == sae.attach_position), None)
    came, completed = known.downloads.get((sae.sae_id, sae.weights_sha256), (None, None))
    record = known.state.saes.get(sae.sae_id)
    steered = cited(began) if brought else known.steered.get(sae.sae_id)
    since = [came, *known.attached.get(sae.attach_position, ()), *_new(steered, known, sae)]
    return {
        "sae_id": sae.sae_id,
        "repository_id": record and record.repository_id,
        "revision": record and record.revision,
        "path": record and record.path,
        "commit": completed and completed.commit,
        "files": [] if completed is None else _plain(completed.files),
        "format": completed and completed.sae.format,
        "architecture": completed and completed.sae.architecture,
        "weights_sha256": sae.weights_sha256,
        "weights_files": _plain(_weights(completed)),
        "hook_point": _plain(sae.hook_point),
        "hook_point_out": _plain(sae.hook_point_out),
        "mode": sae.mode,
        "exclude": _plain(sae.exclude),
        "passes": sorted(sae.passes) if sae.mode == "reconstruct" else None,
        "dtype": attachment and attachment.dtype,
        "steering": [{**_plain(edit), "words": edit_in_words(edit)} for edit in sae.steering],
        "steering_from": "request" if brought else "server",
        "steering_enabled": _enabled(attachment, brought=brought),
        "since": [_plain(each) for each in since if each is not None],
    }


def _weights(completed: ev.DownloadCompleted | None) -> WeightsFiles:
    if completed is None:
        return ()
    return completed.weights_files or of_record(completed.files, completed.weights_sha256)


def _new(steered: Cited | None, known: Provenance, sae: ActiveSae) -> Iterable[Cited]:
    """The event that set the steering, unless it is one of the attachment's own."""
    if steered is not None and steered not in known.attached.get(sae.attach_position, ()):
        yield steered


def _enabled(attachment: AttachmentState | None, *, brought: bool) -> bool | None:
    if brought:
        return True
    return None if attachment is None else attachment.enabled


def _stop_when(started: ev.GenerationStarted | None) -> View | None:
    stop = None if started is None else started.stop_when
    if stop is None:
        return None
    said = {"sae_id": stop.sae.sae_id, "feature": stop.feature, "above": stop.above}
    return {**said, "exclude": _plain(stop.exclude)}


def _first(started: object, finished: object, name: str) -> Any:
    return getattr(started, name, None) or getattr(finished, name, None)


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value)
