"""The state of the service as a value: the fold of the log."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from .events import LogFile, MadeFrom, PresetSae, Problem, Source
from .refs import (
    ActiveSae,
    Edit,
    Exclusion,
    HookPoint,
    Intervention,
    Mode,
    ModelFacts,
    Monitoring,
    SaeDescription,
    SaeFile,
)
from .structs import filled
from .weights import WeightsFiles, names, of_record

ModelStatus: TypeAlias = Literal["loading", "loaded", "error"]
RecordStatus: TypeAlias = Literal["downloading", "cached", "deleting", "error"]
AttachmentStatus: TypeAlias = Literal["attaching", "attached", "detaching", "failed"]

MAX_ATTEMPTS = 3
"""An effect is given up after the process has crashed this many times during it."""


class ModelState(Struct, frozen=True, kw_only=True):
    status: ModelStatus
    request_position: int
    model: str
    revision: str
    dtype: str
    device: str
    quantization: str | None = None
    facts: ModelFacts | None = None
    error: Problem | None = None
    attempts: int = 0
    restored: bool = False
    """It is loaded again after a start, not for an open command."""


class SaeLocation(Struct, frozen=True, kw_only=True):
    """Where an SAE's files are, as the hub adapter understands it."""

    sae_id: str = ""
    source: Source
    repository_id: str | None
    commit: str | None
    path: str | None
    files: tuple[SaeFile, ...]
    layer: int | None = None
    """Which of the layers in a file of vectors."""

    @property
    def converted(self) -> tuple[SaeFile, ...]:
        """Files that the service converted from pickles. They are loaded in place of the originals."""
        return tuple(file for file in self.files if file.converted_from is not None)

    @property
    def written_by_service(self) -> bool:
        """Whether only the service writes the files of the weights. It never shortens them, so they may be mapped."""
        return self.source != "import" or bool(self.converted)


class SaeRecord(Struct, frozen=True, kw_only=True):
    sae_id: str
    source: Source
    repository_id: str | None
    revision: str | None
    path: str | None
    coming_path: str | None = None
    """Of an import that runs: another folder with the same weights, which takes the place of `path`."""
    layer: int | None = None
    made_from: MadeFrom | None = None
    status: RecordStatus
    request_position: int
    """Position of the intent of the running download, import or delete, else of the last one."""
    created_at: str
    named_as: str | None = None
    force: bool = False
    commit: str | None = None
    files: tuple[SaeFile, ...] = ()
    sae: SaeDescription | None = None
    """None until the files are complete."""
    weights_sha256: str = ""
    weights_files: WeightsFiles = ()
    error: Problem | None = None
    attempts: int = 0

    @property
    def weights(self) -> WeightsFiles:
        """The files that hold the weights, even if an older event did not name them."""
        return self.weights_files or of_record(self.files, self.weights_sha256)

    def has_weights(self, digest: str) -> bool:
        """Whether `digest`, in either of its forms, is that of its weights."""
        return digest == self.weights_sha256 or names(digest, self.weights)

    @property
    def location(self) -> SaeLocation:
        return filled(SaeLocation, self)


class AttachmentState(Struct, frozen=True, kw_only=True):
    sae_id: str
    status: AttachmentStatus
    request_position: int
    """Position of its AttachRequested: the engine's key for the SAE."""
    model_position: int = 0
    """Position of the ModelLoadRequested of its model."""
    hook_point: HookPoint
    hook_point_out: HookPoint | None
    mode: Mode
    exclude: tuple[Exclusion, ...] | None = None
    """As in `ActiveSae`."""
    dtype: str
    replaces: tuple[str, ...] = ()
    weights_sha256: str = ""
    weights_files: WeightsFiles = ()
    memory_bytes: int = 0
    device_bytes: int = 0
    attached_at: str | None = None
    steering: tuple[Edit, ...] = ()
    enabled: bool = True
    monitoring: Monitoring | None = None
    monitoring_position: int | None = None
    """Position of the last MonitoringChanged, which does not change `position`."""
    detach_position: int | None = None
    restored: bool = False
    attempts: int = 0
    error: Problem | None = None
    position: int = 0
    """Position of the last event that changed this attachment, monitoring aside."""

    @property
    def written_at(self) -> HookPoint:
        """The hook point where it writes; a transcoder reads at another one."""
        return self.hook_point_out or self.hook_point

    def active(
        self, mode: Mode = "steer", steering: tuple[Edit, ...] = (), exclude: tuple[Exclusion, ...] | None = None
    ) -> ActiveSae:
        """The SAE as a part of an intervention; without edits it is only read."""
        own = {"mode": mode, "steering": steering, "exclude": exclude}
        return filled(ActiveSae, self, **own, attach_position=self.request_position)

    def steered(self, steering: tuple[Edit, ...] = ()) -> ActiveSae:
        """The SAE as a part of an intervention, in the mode in which it is attached."""
        return self.active(self.mode, steering, self.exclude)


class Preset(Struct, frozen=True, kw_only=True):
    """An intervention with a name. It outlives the SAEs that it names."""

    name: str
    description: str | None
    interventions: tuple[PresetSae, ...]
    position: int
    """Position of its PresetSaved: the version."""
    saved_at: str

    def missing(self, state: State) -> tuple[str, ...]:
        """Its SAEs that are not attached."""
        return tuple(each.sae_id for each in self.interventions if state.attachment(each.sae_id) is None)

    def incompatible(self, state: State) -> tuple[str, ...]:
        """Its SAEs that are attached with other weights than it was saved for."""
        return tuple(each.sae_id for each in self.interventions if not state.has_weights_of(each))


class OpenCommand(Struct, frozen=True, kw_only=True):
    command_id: str
    type: str
    position: int
    request_position: int
    """Position of the request whose outcome it waits for: its own intent, or the request that it joined."""
    principal: str


class OpenGeneration(Struct, frozen=True, kw_only=True):
    generation_id: str
    position: int
    intervention_sha256: str
    sae_ids: tuple[str, ...]
    command_id: str | None = None
    """Where the request had an idempotency key."""
    principal: str = ""


class State(Struct, frozen=True, kw_only=True):
    position: int = 0
    revision: int = 0
    """Position of the last event that changed model, SAEs, attachments, steering, monitoring or presets."""
    running: bool = False
    """True between ActorStarted and ActorStopped. If it is True at a start, the last process crashed."""
    max_attachments: int = 1
    drain_seconds: float = 3.0
    log_file: LogFile | None = None
    """The file that the last start found the log in."""
    branch_id: str | None = None
    """None: the log was never forked."""
    forked_at: int = 0
    """Position of the last LogForked."""
    model: ModelState | None = None
    saes: dict[str, SaeRecord] = {}
    attachments: tuple[AttachmentState, ...] = ()
    commands: dict[str, OpenCommand] = {}
    generations: dict[str, OpenGeneration] = {}
    presets: dict[str, Preset] = {}

    def attachment(self, sae_id: str) -> AttachmentState | None:
        """The attachment that requests see, if the SAE is attached."""
        return next((a for a in self.attachments if a.sae_id == sae_id and a.status == "attached"), None)

    @property
    def attached(self) -> tuple[AttachmentState, ...]:
        return tuple(a for a in self.attachments if a.status == "attached")

    def weights(self, sae: ActiveSae) -> WeightsFiles:
        """The files that an attached SAE's weights came from; empty if the log does not say."""
        mine = next((a for a in self.attachments if a.request_position == sae.attach_position), None)
        if mine is not None and mine.weights_files:
            return mine.weights_files
        record = self.saes.get(sae.sae_id)
        return record.weights if record is not None and record.weights_sha256 == sae.weights_sha256 else ()

    def has_weights_of(self, sae: PresetSae) -> bool:
        """Whether the SAE is not attached, or with these weights, by either form of their digest."""
        attached = self.attachment(sae.sae_id)
        if attached is None or attached.weights_sha256 == sae.weights_sha256:
            return True
        return names(sae.weights_sha256, attached.weights_files) or names(attached.weights_sha256, sae.weights_files)

    @property
    def in_force(self) -> Intervention:
        """The default intervention of a request: every attached SAE with its steering."""
        return tuple(a.steered(a.steering if a.enabled else ()) for a in self.attached)

    @property
    def degraded(self) -> tuple[AttachmentState, ...]:
        """The SAEs that were attached before the last start and could not be attached again."""
        return tuple(a for a in self.attachments if a.status == "failed")

    def is_open(self, command_id: str) -> bool:
        """Whether a command, or a text under an idempotency key, has no end yet."""
        return command_id in self.commands or any(text.command_id == command_id for text in self.generations.values())

    def command_at(self, request_position: int) -> OpenCommand | None:
        """The open command whose own intent is at this position."""
        return next((c for c in self.commands.values() if c.position == request_position), None)


EMPTY = State()


def encode(state: State) -> bytes:
    """The whole state as canonical JSON, for comparison."""
    return msgspec.json.encode(state, order="sorted")
