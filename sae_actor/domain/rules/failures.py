"""The events that follow when an effect fails, or is given up."""

from __future__ import annotations

from .. import events as ev
from ..effects import AttachEffect, DetachEffect, Effect, LoadModelEffect, RunEffect
from ..events import Problem
from ..state import State
from . import attachments, downloads, runs
from .models import model_failed


def failed(effect: Effect, error: Problem, state: State) -> list[ev.Payload]:
    at = effect.request_position
    match effect:
        case LoadModelEffect():
            return model_failed(at, error, state)
        case AttachEffect():
            return attachments.attach_failed(at, error, state)
        case DetachEffect():
            # No request can use the SAE either way; memory that could not be freed is freed with the process.
            return attachments.detached(at, 0, state)
        case RunEffect():
            return runs.failed(at, error, state)
        case _:
            return downloads.failed(at, error, state)
