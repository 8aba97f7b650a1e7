"""Commands from outside: one struct each, and the HTTP body is the struct.

A new command needs, in this order: a struct here and its place in `AnyCommand`; its events in `events`; an arm in
`decide` and one in `evolve`, for a long-running one also `COMMAND_OF_INTENT`, `effects` and `pending`; an example in
`api.submission`, if it has a path of its own a route in `api.routes`; `client.calls`, `cli.arguments` and
`cli.client_commands`. `.github/CONTRIBUTING.md` has every step.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from .events import LabelSource, MadeFrom, RunId, RunKind, RunTexts
from .refs import Dtype, Edits, Exclusions, Feature, HookPoint, Layer, Mode, ReadingExclusions, SaeId, check_passed

RepositoryId: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"
                 r"|(saelens|neuronpedia):[A-Za-z0-9][A-Za-z0-9_.:=, @+/()-]{0,299})\Z",
         description="owner/name of a repository, in letters, digits and . _ -; or an SAE's name elsewhere, "
                     "saelens:RELEASE/SAE_ID or neuronpedia:MODEL/SOURCE"),
]  # fmt: skip
Revision: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}\Z", description="a branch, a tag or a commit")
]
RepositoryPath: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.:=, @+/-]{1,512}\Z")]
PlainText: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", max_length=4096)]
Device: TypeAlias = Annotated[
    str, Meta(pattern=r"\A(auto|cpu|cuda(:[0-9]{1,2})?)\Z", description="auto, cpu, cuda or cuda:N")
]
ModelDtype: TypeAlias = Annotated[
    str, Meta(pattern=r"\A(auto|float32|float16|bfloat16)\Z", description="auto, float32, float16 or bfloat16")
]


PresetName: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{1,64}\Z", description="name of a preset")]
RunName: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", max_length=128)]
Quantization: TypeAlias = Annotated[Literal["int8", "nf4"], Meta(description="int8 or nf4")]


class Command(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag=True):
    """The base of all commands; `type` in JSON is the class name."""

    later: ClassVar[dict[str, Any]] = {}
    """Fields added to this command later → the value that a command without the field means."""

    @property
    def type_name(self) -> str:
        return type(self).__name__

    def digest(self) -> str:
        """Canonical JSON, by which two commands under one idempotency key are compared. Defaults are filled in, except
        in fields added later: a command without them equals the one that an earlier version accepted."""
        unsaid = {name for name, usual in self.later.items() if getattr(self, name) == usual}
        fields = {name: value for name, value in msgspec.to_builtins(self).items() if name not in unsaid}
        return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def _has_whole_parts(path: str) -> bool:
    return not any(part in ("", ".", "..") for part in path.split("/"))


def is_public_name(repository_id: str) -> bool:
    """Whether it is a name from elsewhere, not a repository's."""
    return repository_id.startswith(("saelens:", "neuronpedia:"))


def _check_revision(revision: str) -> None:
    if ".." in revision or not _has_whole_parts(revision):
        raise ValueError("revision is not the name of a branch, tag or commit")


class LoadModel(Command, frozen=True):
    """Load a model from the hub or a local path; replaces the loaded one when nothing is attached."""

    model: PlainText
    revision: Revision = "main"
    dtype: ModelDtype = "auto"
    device: Device = "auto"
    quantization: Quantization | None = None
    """How bitsandbytes is to quantise the weights; null: they are held as the checkpoint has them, by its own scheme if
    it has one."""

    later: ClassVar[dict[str, Any]] = {"quantization": None}

    def __post_init__(self) -> None:
        _check_revision(self.revision)


class UnloadModel(Command, frozen=True):
    """Free the model; during a load it cancels the load."""


class Download(Command, frozen=True):
    """Fetch one SAE of a hub repository."""

    repository_id: RepositoryId
    revision: Revision = "main"
    path: RepositoryPath | None = None
    force: bool = False
    named_as: PlainText | None = None
    """The name that repository and path were found under; the service sets it."""

    later: ClassVar[dict[str, Any]] = {"named_as": None}

    def __post_init__(self) -> None:
        _check_revision(self.revision)
        if self.path is not None and not _has_whole_parts(self.path):
            raise ValueError("path must be relative, without empty, '.' or '..' parts")
        if ".." in self.repository_id or "--" in self.repository_id:
            raise ValueError("repository_id is not a hub id such as owner/name")


class CancelDownload(Command, frozen=True):
    """Stop a running download; its record is gone."""

    sae_id: SaeId


class Import(Command, frozen=True):
    """Register an SAE that is already on disk, under one of `[hub] import_roots`."""

    path: PlainText
    layer: Layer | None = None
    """Of a file with vectors of several layers: which one."""

    later: ClassVar[dict[str, Any]] = {"layer": None}


class KeepVectors(Command, frozen=True):
    """Register vectors whose file the service has written; `POST /api/vectors` and `/api/directions` send it."""

    sae_id: SaeId
    made_from: MadeFrom


class ImportLabels(Command, frozen=True):
    """Put labels on record whose file the service has written; `PUT /api/saes/{sae_id}/labels` sends it."""

    sae_id: SaeId
    source: str
    sha256: str
    labels: int
    features: int
    sources: tuple[LabelSource, ...]


class DeleteLabels(Command, frozen=True):
    """Forget the labels of a source, or all; `DELETE /api/saes/{sae_id}/labels` sends it."""

    sae_id: SaeId
    source: str | None = None


class Attach(Command, frozen=True):
    """Attach an SAE at a hook point; null means the one it was trained at."""

    sae_id: SaeId
    layer: Layer | None = None
    hook_point: HookPoint | None = None
    mode: Mode = "steer"
    dtype: Dtype = "float32"
    replace: bool = False
    exclude: Exclusions | None = None
    """Positions `reconstruct` leaves unchanged; null: those an edit excludes, sinks if no edit excludes any."""

    later: ClassVar[dict[str, Any]] = {"exclude": None}

    def __post_init__(self) -> None:
        check_passed(self.exclude, self.mode)


class Detach(Command, frozen=True):
    """Detach an SAE: new requests run without it at once. Completes when its memory is free."""

    sae_id: SaeId


class Delete(Command, frozen=True):
    """Delete an SAE's files; for an import, forget only the record."""

    sae_id: SaeId


class Steer(Command, frozen=True):
    """Replace the set of edits of an attached SAE; an empty list clears it."""

    sae_id: SaeId
    features: Edits
    enabled: bool = True


class Monitor(Command, frozen=True):
    """Stream an attached SAE's activations during generation: the `top_k` largest, of `features` or of all, except at
    positions that `exclude` names."""

    sae_id: SaeId
    enabled: bool
    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=4096)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=1024)] = 10
    exclude: ReadingExclusions = ("sink",)

    later: ClassVar[dict[str, Any]] = {"exclude": ("sink",)}


class RequestedIntervention(Struct, frozen=True, forbid_unknown_fields=True):
    """One SAE of an intervention that a request or a preset brings along."""

    sae_id: SaeId
    mode: Mode = "steer"
    steering: Edits = ()
    exclude: Exclusions | None = None
    """As in `Attach`."""

    def __post_init__(self) -> None:
        check_passed(self.exclude, self.mode)


class SavePreset(Command, frozen=True):
    """Save interventions under a name, in place of what had it; requests use them as `model: "default@NAME"`."""

    name: PresetName
    interventions: Annotated[tuple[RequestedIntervention, ...], Meta(max_length=64)]
    description: Annotated[str, Meta(max_length=1024)] | None = None


class DeletePreset(Command, frozen=True):
    """Forget a preset; answers that used it stay as they are."""

    name: PresetName


class Run(Command, frozen=True):
    """Measure something that takes long. It goes on after a restart, and waits while its model or SAEs are away."""

    kind: RunKind
    spec: dict[str, Any]
    """What is measured. Of `evaluate`: `sae_id`, `texts`, `max_tokens`, `context` = 128, `exclude` = ["sink"]. Of
    `profile`: `sae_id`, `texts`, `max_tokens`, `length` = 128, `exclude` = ["sink"], `top` = 20, `context` = [10, 5],
    `quantiles` = 5. `texts` is one of {"texts": [..]}, {"file": name}, {"texts_id": id}. A longer text goes on in
    further contexts. Of `sweep`: `prompts` (a list of texts or messages, or as `texts`), `variants` [{"name", "sae"}],
    `seeds`, `max_tokens` = 16, `temperature` = 1, `continuations`, `features`, `sae_id`. Of `contrast`: the body of
    /api/contrast, whose lists may also be as `texts`; or one such list as `texts`, with labels: those with `label` are
    the positive ones."""
    name: RunName | None = None


class RequestedVariant(Struct, frozen=True, kw_only=True):
    """An intervention that a sweep is to compare, with raw strengths; without any of these the server's steering."""

    name: str
    baseline: bool = False
    steering: Edits | None = None
    interventions: tuple[RequestedIntervention, ...] | None = None
    preset: PresetName | None = None
    deterministic: bool = False
    expect_position: int | None = None


class RequestRun(Command, frozen=True, kw_only=True):
    """A run whose texts are on disk; the service makes it of a `Run`."""

    run_id: RunId
    kind: RunKind
    spec: dict[str, Any]
    name: RunName | None = None
    read: tuple[SaeId, ...] = ()
    """SAEs whose activations are read."""
    texts: tuple[RunTexts, ...] = ()
    variants: tuple[RequestedVariant, ...] = ()
    seeds: tuple[int, ...] = ()
    """Of a sweep; one is made where there is none."""
    asked_sha256: str
    """Digest of the `Run`."""

    @property
    def type_name(self) -> str:
        """As the command that it is made of."""
        return Run.__name__

    def digest(self) -> str:
        """As it was asked, whatever has become of texts, names and strengths since."""
        return self.asked_sha256


class CancelRun(Command, frozen=True):
    """End a run; its rows stay."""

    run_id: RunId


class DeleteRun(Command, frozen=True):
    """Erase a run's texts and rows; one that has not ended is cancelled."""

    run_id: RunId


AnyCommand: TypeAlias = (
    LoadModel
    | UnloadModel
    | Download
    | CancelDownload
    | Import
    | Attach
    | Detach
    | Delete
    | Steer
    | Monitor
    | SavePreset
    | DeletePreset
    | Run
    | CancelRun
    | DeleteRun
)
