"""Events: one payload struct per type, and the envelope that the log stores.

    payload                             what all payloads share: a schema; a command's digest; a `Problem`
    life, model, saes, presets, generations      the payloads, by subject; sampling: the settings of a generation
    upcasting                           payloads of earlier schemas, as those of today
    envelope                            `Draft`, `Event`, `PAYLOADS`: type and bytes ↔ payload

Events are facts: new fields have defaults, a field that must change is a new schema, so that every log still folds.

An `Intent` is the first event of an accepted command, with the command's digest. `request_position` in an outcome is
the position of its intent, the fencing token.
"""

from .envelope import ERASED, PAYLOADS, Draft, Event, draft, payload_of, stored
from .generations import GenerationFinished, GenerationStarted, Receipt, ScoreSummary
from .life import (
    ActorStarted,
    ActorStopped,
    CommandRejected,
    EffectInterrupted,
    GpuLost,
    LogFile,
    LogForked,
    LogHead,
    LogTruncated,
    PayloadRedacted,
    SettingsReloaded,
)
from .model import ModelLoaded, ModelLoadFailed, ModelLoadRequested, ModelUnloaded
from .payload import MAX_PAYLOAD_BYTES, Intent, Payload, Problem
from .presets import PresetDeleted, PresetSae, PresetSaved, PresetVersion
from .saes import (
    AttachFailed,
    AttachRequested,
    DeleteFailed,
    DeleteRequested,
    DetachRequested,
    DownloadCancelled,
    DownloadCompleted,
    DownloadFailed,
    DownloadRequested,
    HookFaulted,
    MadeFrom,
    MonitoringChanged,
    NormOf,
    SaeAttached,
    SaeDeleted,
    SaeDetached,
    Source,
    SteeringChanged,
    TextsRead,
)
from .sampling import ResponseFormat, Sampling
