"""`decide` holds every rule of the service: a message and a state give the events that follow.

Pure: it raises an error of `errors` where the rules refuse, never waits and does no I/O.
The first event of an accepted command is its intent. An outcome names its request by position.
"""

from __future__ import annotations

from . import events as ev
from .commands import (
    Attach,
    CancelDownload,
    Delete,
    DeletePreset,
    Detach,
    Download,
    Import,
    KeepVectors,
    LoadModel,
    Monitor,
    SavePreset,
    Steer,
    UnloadModel,
)
from .effects import AttachEffect, DeleteEffect, DetachEffect, DownloadEffect, ImportEffect, LoadModelEffect
from .messages import AdmitGeneration, AdmitGenerations, Message, ResolvedPreset, Start, Stop, WeighedImport
from .refs import ModelFacts
from .reports import AttachedSae, EffectDone, EffectFailed, HubSae, SaeFailed
from .rules import admission, attachments, downloads, presets
from .rules.failures import failed
from .rules.models import load_model, model_loaded, unload_model
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
        case Download():
            return downloads.download(message, state)
        case CancelDownload():
            return downloads.cancel(message, state)
        case Import():
            return downloads.import_(message, state)
        case WeighedImport():
            return downloads.import_(message.command, state, message.digest)
        case KeepVectors():
            return downloads.keep_vectors(message, state)
        case Delete():
            return downloads.delete(message, state)
        case Attach():
            return attachments.attach(message, state)
        case Detach():
            return attachments.detach(message, state)
        case Steer():
            return attachments.steer(message, state)
        case Monitor():
            return attachments.monitor(message, state)
        case SavePreset():
            return presets.save(message, state)
        case ResolvedPreset():
            return presets.save(message.command, state, message)
        case DeletePreset():
            return presets.delete(message, state)
        case AdmitGeneration():
            return admission.admit(message, state)
        case AdmitGenerations():
            return [payload for each in message.requests for payload in admission.admit(each, state)]
        case EffectDone(LoadModelEffect(request_position=at), ModelFacts() as model):
            return model_loaded(at, model, state)
        case EffectDone(DownloadEffect(request_position=at) | ImportEffect(request_position=at), HubSae() as sae):
            return downloads.downloaded(at, sae, state)
        case EffectDone(DeleteEffect(request_position=at), int(freed)):
            return downloads.deleted(at, freed, state)
        case EffectDone(AttachEffect() as effect, AttachedSae() as made):
            return attachments.attached(effect, made, state)
        case EffectDone(DetachEffect(request_position=at), int(freed)):
            return attachments.detached(at, freed, state)
        case EffectDone(effect, found):
            raise TypeError(f"{effect.name} finds no {type(found).__name__}")
        case EffectFailed():
            return failed(message.effect, message.error, state)
        case SaeFailed():
            return attachments.hook_faulted(message, state)
        case ev.GenerationFinished():
            return admission.finished(message, state)
        case ev.GpuLost() | ev.SettingsReloaded():
            return [message]
