"""`decide` holds every rule of the service: a message and a state give the events that follow.

Pure: it raises an error of `errors` where the rules refuse, never waits and never touches the world.
The first event of an accepted command is its intent. An outcome names its request by position.
"""

from __future__ import annotations

from . import events as ev
from .commands import (
    Attach,
    CancelDownload,
    Delete,
    Detach,
    Download,
    Import,
    LoadModel,
    Monitor,
    Steer,
    UnloadModel,
)
from .messages import AdmitGeneration, AdmitGenerations, Message, Start, Stop
from .rules import admission, attachments, downloads
from .rules.models import load_model, model_failed, model_loaded, unload_model
from .rules.start import start
from .state import State


def decide(message: Message, state: State) -> list[ev.Payload]:
    """The payloads to be recorded, in order; empty for a report that comes too late."""
    match message:
        case Start():
            return start(message, state)
        case Stop():
            return [ev.ActorStopped(reason=message.reason)]
        case LoadModel():
            return load_model(message, state)
        case UnloadModel():
            return unload_model(state)
        case ev.ModelLoaded():
            return model_loaded(message, state)
        case ev.ModelLoadFailed():
            return model_failed(message, state)
        case Download():
            return downloads.download(message, state)
        case CancelDownload():
            return downloads.cancel(message, state)
        case Import():
            return downloads.import_(message, state)
        case ev.DownloadCompleted() | ev.DownloadFailed():
            return downloads.downloaded(message, state)
        case Delete():
            return downloads.delete(message, state)
        case ev.SaeDeleted() | ev.DeleteFailed():
            return downloads.deleted(message, state)
        case Attach():
            return attachments.attach(message, state)
        case ev.SaeAttached():
            return attachments.attached(message, state)
        case ev.AttachFailed():
            return attachments.attach_failed(message, state)
        case Detach():
            return attachments.detach(message, state)
        case ev.SaeDetached():
            return attachments.detached(message, state)
        case ev.HookFaulted():
            return attachments.hook_faulted(message, state)
        case Steer():
            return attachments.steer(message, state)
        case Monitor():
            return attachments.monitor(message, state)
        case AdmitGeneration():
            return admission.admit(message, state)
        case AdmitGenerations():
            return [payload for each in message.requests for payload in admission.admit(each, state)]
        case ev.GenerationFinished():
            return admission.finished(message, state)
        case ev.GpuLost():
            return [message]
