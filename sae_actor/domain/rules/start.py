"""The rules of a start: whether the log is a copy, which effects a crash interrupted, which are given up after three
crashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .. import events as ev
from ..effects import Effect
from ..events import Problem
from ..folds.restart import wanted_after_start
from ..messages import Start, TakenOver
from ..pending import pending
from ..state import MAX_ATTEMPTS, State
from ..structs import filled
from .failures import failed
from .models import missing


def start(message: Start, state: State) -> list[ev.Payload]:
    """Take the log over: count the effects that a crash interrupted, and give up those that it did three times."""
    missing(message.model, state)  # refuses a start for another model than the one that an SAE is attached to
    started = filled(ev.ActorStarted, message, log_file=None if message.log is None else message.log.log_file)
    begun: list[ev.Payload] = [*_forked(message.log, state), started]
    cut_off: list[ev.Payload] = [
        filled(ev.GenerationFinished, g, started_position=g.position, finish_reason="interrupted")
        for g in state.generations.values()
    ]
    if not state.running:
        return [*begun, *cut_off]
    after = wanted_after_start(state, started)
    for effect in pending(state):
        attempt = _attempts(effect, state) + 1
        cut_off.append(filled(ev.EffectInterrupted, effect, effect=effect.name, attempt=attempt))
        if attempt >= MAX_ATTEMPTS:
            why = f"the process ended {MAX_ATTEMPTS} times during this {effect.name}"
            cut_off += failed(effect, Problem(code="internal", detail=why), after)
    return [*begun, *cut_off]


def _forked(log: TakenOver | None, state: State) -> Iterator[ev.LogForked]:
    """A log that was restored or imported forks once. So does one in another file than at its last start: its original
    may go on, and cannot know of it. If the last start did not record its file, nothing is known."""
    if log is None:
        return
    if log.origin is not None and log.origin.log_id == log.log_id and log.origin.head.position >= state.forked_at:
        reason: Literal["copied", "restored", "imported"] = log.origin.reason
        head = log.origin.head
    elif state.log_file is not None and not log.log_file.is_at(state.log_file):
        reason, head = "copied", ev.LogHead(position=state.position, hash=log.head_hash)
    else:
        return
    yield ev.LogForked(
        reason=reason,
        branch_id=log.branch_id,
        parent_id=state.branch_id or log.log_id,
        parent_head=head,
    )


def _attempts(effect: Effect, state: State) -> int:
    """How many crashes have interrupted this effect so far."""
    if effect.name == "load_model":
        return 0 if state.model is None else state.model.attempts
    if effect.name in ("attach", "detach"):
        positions = effect.request_position
        return next((a.attempts for a in state.attachments if positions in (a.request_position, a.detach_position)), 0)
    return next((r.attempts for r in state.saes.values() if r.request_position == effect.request_position), 0)
