"""Shapes of the answers, for the description alone: what a handler sends is held against them by the tests.

A shape is a TypedDict where the answer is put together by hand, and the struct itself where it is one.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from ...domain.events import Event, Problem
from ...domain.refs import Edit, Exclusion, HookKind, HookPoint, Mode, SaeFile
from ...domain.state import OpenCommand, OpenGeneration
from ...domain.weights import WeightsFile
from ...ports import FeatureActivation, Head, NearFeature, TokenWeight

Position: TypeAlias = Annotated[int, Meta(ge=0, description="of an event in the log")]
Bytes: TypeAlias = Annotated[int, Meta(ge=0)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Digest: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Time: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z", description="UTC")
]
Ranges: TypeAlias = list[tuple[int, int]]


class ProblemDetails(TypedDict):
    """Why a request was refused, or failed (RFC 9457); further members say more, such as `sae_d_in`."""

    type: str
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    code: str


class OpenAIFault(TypedDict):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(TypedDict):
    """The shape of errors under `/v1`."""

    error: OpenAIFault


# — commands —


class Accepted(TypedDict):
    """On record, not done yet."""

    command_id: str
    position: Position
    status: Literal["accepted"]
    sae_id: NotRequired[str]


class CommandOutcome(TypedDict):
    """What became of a command, and the events it led to."""

    command_id: str
    status: Literal["accepted", "completed", "failed"]
    position: Position
    events: list[Event]
    error: ProblemDetails | None
    sae_id: NotRequired[str]


class Attached(TypedDict):
    status: Literal["attached"]
    sae_id: str
    layer: int
    hook_point: HookPoint
    memory_bytes: Bytes
    device_bytes: Bytes
    warnings: list[str]
    position: Position


class Freed(TypedDict):
    """Of memory (`detached`), or of the disk (`deleted`)."""

    status: Literal["detached", "deleted"]
    sae_id: str
    freed_bytes: Bytes
    position: Position


class Cancelled(TypedDict):
    status: Literal["cancelled"]
    sae_id: str
    position: Position


# — SAEs and the model —


class Sae(TypedDict):
    """One SAE; what its files say is null until they are complete."""

    sae_id: str
    repository_id: str | None
    revision: str | None
    commit: str | None
    path: str | None
    name: str
    source: Literal["hub", "import"]
    status: Literal["downloading", "cached", "attaching", "attached", "deleting", "error"]
    format: str | None
    architecture: str | None
    d_in: int | None
    d_sae: int | None
    d_out: int | None
    dtype: str | None
    trained_on: str | None
    trained_layer: int | None
    hook_name: str | None
    hook_point: HookPoint | None
    hook_point_out: HookPoint | None
    files: list[SaeFile]
    file_size_bytes: Bytes
    memory_bytes: Bytes | None
    prepend_bos: Annotated[bool | None, Meta(description="trained on texts that begin with BOS; null: not said")]
    ignored: Annotated[dict[str, str], Meta(description="settings in its files that play no part, and why")]
    weights_sha256: Annotated[
        str | None, Meta(description="of one file its own sha256; in older logs, and of several, that of their list")
    ]
    weights_files: list[WeightsFile]
    warnings: list[str]
    created_at: Time
    error: Problem | None


class AttachmentFields(TypedDict):
    is_attached: bool
    sae_id: str | None
    layer: int | None
    hook_point: HookPoint | None
    hook_point_out: HookPoint | None
    mode: Mode | None
    exclude: list[Exclusion] | None
    dtype: str | None
    attached_at: Time | None
    memory_bytes: Bytes | None
    device_bytes: Bytes | None
    steering: list[Edit] | None
    steering_enabled: bool | None
    position: Position | None


class Attachment(AttachmentFields):
    """The first attached SAE (null where there is none), and all of them."""

    attachments: list[AttachmentFields]


class Disk(TypedDict):
    used_bytes: Bytes
    quota_bytes: Bytes | None


class SaeList(TypedDict):
    saes: list[Sae]
    attachment: Attachment
    disk: Disk


class Steering(TypedDict):
    """The edits in force."""

    sae_id: str
    features: list[Edit]
    enabled: bool
    position: Position


class Objection(TypedDict):
    code: str
    detail: str


class Compatibility(TypedDict):
    compatible: bool
    sae_d_in: int
    model_d: int | None
    layer: int | None
    warnings: list[str]
    errors: list[Objection]


class Feature(TypedDict):
    """What the weights, the unembedding and the SAE's folder say of a feature."""

    sae_id: str
    feature: int
    decoder_norm: float
    bias: float | None
    threshold: float | None
    nearest: list[NearFeature]
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]
    label: str | None
    max_activation: float | None
    density: float | None
    top_tokens: list[str]


class Model(TypedDict):
    status: Literal["none", "loading", "loaded", "error"]
    model_id: str | None
    revision: str | None
    commit: str | None
    model_type: str | None
    dtype: str | None
    device: str | None
    num_layers: int | None
    hidden_size: int | None
    context_length: int | None
    memory_bytes: Bytes | None
    error: Problem | None


# — the log —


class LogPage(TypedDict):
    events: list[Event]
    head: Head


class Monitored(TypedDict):
    """What is streamed of an attached SAE while text is generated."""

    sae_id: str
    features: list[int] | None
    top_k: int
    exclude: list[Exclusion]
    position: Position | None


class State(TypedDict):
    """The state as it was at `position`."""

    position: Position
    model: Model | None
    saes: dict[str, Sae]
    attachments: list[AttachmentFields]
    monitors: list[Monitored]
    commands: list[OpenCommand]
    generations: list[OpenGeneration]


# — the service —


class Health(TypedDict):
    status: Literal["ok"]
    position: Position


class Session(TypedDict):
    """Who the caller is (null for somebody unknown), and whether the service asks for tokens."""

    principal: str | None
    role: Literal["viewer", "operator"] | None
    tokens: bool


class Lost(TypedDict):
    """The model (`sae_id` null) or an SAE that was there before the last start, and why it is not any more."""

    sae_id: str | None
    error: Problem | None
    model: NotRequired[str]
    hook_point: NotRequired[HookPoint]


class Ready(TypedDict):
    status: Literal["ready", "degraded", "read_only"]
    degraded: list[Lost]
    read_only: str | None


class Limits(TypedDict):
    max_attachments: int
    max_edits: int
    max_strength: float
    max_running: int
    max_waiting: int


class Running(TypedDict):
    """How the loaded model makes texts: in one batch or in turn, whether `deterministic` can be had, and how many
    positions of keys and values one text may take."""

    model_id: str
    batching: bool
    deterministic: bool
    cache_positions: int | None


class Capabilities(TypedDict):
    """What this build can do; `families` are the model types with the hook points of each."""

    version: str
    formats: list[str]
    architectures: list[str]
    hook_points: list[HookKind]
    families: dict[str, list[str]]
    methods: list[str]
    modes: list[Mode]
    positions: list[str]
    exclusions: list[str]
    units: list[str]
    conditions: list[str]
    limits: Limits
    versions: dict[str, str | None]
    model: Running | None


class ReadActivations(TypedDict):
    """What an SAE reads at each token of a prompt."""

    tokens: list[str]
    token_ids: list[int]
    is_special: list[bool]
    is_sink: list[bool]
    features: list[list[FeatureActivation]]
    sae_id: str
    intervention_sha256: Digest
