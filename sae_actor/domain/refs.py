"""The nouns of the service as values: hook points, edits, SAE and model descriptions.

Everything here is frozen, knows no torch and does no I/O. Numbers are bounded by what could hold for
*any* model or SAE; what holds for the loaded ones is decided in `decide`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

Layer: TypeAlias = Annotated[int, Meta(ge=0, le=4095)]
Feature: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MAX_STRENGTH = 1e6
Strength: TypeAlias = Annotated[float, Meta(ge=-MAX_STRENGTH, le=MAX_STRENGTH)]
TokenIndex: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
SaeId: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,119}\Z")]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]

HookKind: TypeAlias = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_act", "mlp_out"
]
Before: TypeAlias = Literal["norm", "gain"]
Mode: TypeAlias = Literal["steer", "reconstruct"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Method: TypeAlias = Literal["add", "set", "scale", "cap", "project", "set_projection"]
Unit: TypeAlias = Literal["raw", "unit", "max", "norm"]
Exclusion: TypeAlias = Literal["sink", "special", "template"]
Exclusions: TypeAlias = Annotated[tuple[Exclusion, ...], Meta(max_length=3)]
ReadingExclusions: TypeAlias = Annotated[tuple[Literal["sink", "special"], ...], Meta(max_length=2)]
"""Positions left out of readings during generation. `template` is missing: it wrote none of the generated tokens."""
NamedPositions: TypeAlias = Literal["all", "prompt", "generated", "response", "last_prompt"]

FinishReason: TypeAlias = Literal[
    "stop", "length", "feature", "intervention_removed", "cancelled", "error", "interrupted"
]

MAX_EDITS = 256
SINK_WINDOW = 512
"""A sink's norm is compared with the median of this many of the prompt's first positions."""

NORMED: frozenset[HookKind] = frozenset({"mlp_in", "attn_out", "mlp_out"})
"""Kinds that may be outputs of a norm: the MLP's input; the outputs of attention and MLP in families that norm them."""


class HookPoint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A place in the model at which an SAE reads or writes."""

    kind: HookKind
    layer: Layer
    before: Before | None = None
    """For `mlp_in`, `attn_out` and `mlp_out`, if they are outputs of a norm. `gain`: the norm's output before it
    multiplies by its weight and adds its bias. `norm`: the norm's input; before the norm of `mlp_in` an edit reaches
    only the MLP, before the other two it changes the output of attention or MLP. Null: the activation of `kind`
    itself."""

    def __post_init__(self) -> None:
        if self.before is not None and self.kind not in NORMED:
            raise ValueError(f"before: {self.kind} is not the output of a norm")

    def __str__(self) -> str:
        side = {None: "", "gain": " before the gain of its norm", "norm": " before its norm"}[self.before]
        return f"{self.kind}.{self.layer}{side}"


class Span(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Positions of the request's own sequence, counted from 0: exactly one of the three forms.

    `{"tokens": [i…]}`, `{"from": i, "to": j}` (j excluded, either end may be left out) or `{"role": …}`.
    """

    tokens: Annotated[tuple[TokenIndex, ...], Meta(min_length=1, max_length=4096)] | None = None
    from_: TokenIndex | None = field(default=None, name="from")
    to: TokenIndex | None = None
    role: Literal["system", "user", "assistant"] | None = None

    def __post_init__(self) -> None:
        forms = (self.tokens is not None) + (self.from_ is not None or self.to is not None) + (self.role is not None)
        if forms != 1:
            raise ValueError("positions must have one of tokens, from/to, role")
        if self.from_ is not None and self.to is not None and self.from_ >= self.to:
            raise ValueError("positions: from must be below to")


Positions: TypeAlias = NamedPositions | Span


class When(Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on another feature of the same SAE: the edit holds where its activation is above `above`."""

    feature: Feature
    above: Strength


def check_passed(exclude: tuple[Exclusion, ...] | None, mode: Mode) -> None:
    """`ValueError` if `exclude` is given for an SAE that does not reconstruct."""
    if exclude is not None and mode != "reconstruct":
        raise ValueError("an SAE's exclude requires mode reconstruct; in mode steer each edit has its own")


class Edit(Struct, frozen=True, forbid_unknown_fields=True):
    """One feature edit; README, "Steering", explains the methods."""

    feature: Feature
    strength: Strength
    method: Method = "add"
    positions: Positions = "all"
    exclude: Exclusions = ("sink",)
    """The default is only for requests and commands: stored edits always name theirs."""
    unit: Unit = "raw"
    sae_id: SaeId | None = None
    when: When | None = None

    @property
    def named_position(self) -> int:
        """The highest position in `tokens`, or the beginning of the range; 0 if there is neither."""
        if not isinstance(self.positions, Span):
            return 0
        return max(self.positions.tokens or (self.positions.from_ or 0,))

    @property
    def asks_for_roles(self) -> bool:
        return isinstance(self.positions, Span) and self.positions.role is not None

    @property
    def asks_for_turns(self) -> bool:
        """It covers other positions if the prompt is a chat."""
        return self.asks_for_roles or "template" in self.exclude


Edits: TypeAlias = Annotated[tuple[Edit, ...], Meta(max_length=MAX_EDITS)]


class SaeFile(Struct, frozen=True, omit_defaults=True):
    """One file of an SAE, `path` relative to the SAE's root (repository or imported folder)."""

    path: str
    bytes: int
    sha256: str
    converted_from: str | None = None
    """Path of the pickle that the service made this file of; it is kept in the data folder, not at `path`."""


class SaeDescription(Struct, frozen=True, kw_only=True):
    """What the files of one SAE say about it, read without torch and without the weights."""

    format: str
    """Name of the on-disk family, such as `sae_lens`."""
    architecture: str
    """`standard`, `gated`, `jumprelu`, `topk`, `transcoder`, …"""
    d_in: int
    d_sae: int
    d_out: int
    dtype: str
    """Type of the weights on disk: `float32`, `float16`, `bfloat16`."""
    has_threshold: bool = False
    trained_on: str | None = None
    """Model it was trained on, as the files name it."""
    trained_layer: int | None = None
    hook_name: str | None = None
    """The hook as the files name it, such as `blocks.15.hook_resid_post`."""
    hook_point: HookPoint | None = None
    hook_point_out: HookPoint | None = None
    """The hook point at which a transcoder writes; None for an SAE."""
    prepend_bos: bool | None = None
    """Whether its training texts begin with BOS; None if the files do not say."""
    ignored: dict[str, str] = {}
    """Settings in the files that have no effect here → the reason."""
    norms_folded: bool = False
    """The library it was trained with had folded the norms' gains and biases into the next matrices. So the output of
    a LayerNorm was its output before the gain."""
    hooks_read: int = 0
    """Which reading of hook names made `hook_point` of `hook_name`; see `placement.reread`."""
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of vectors: what each row is called, if the files say it; and the median |x| at the hook point."""
    median_norm: float | None = None

    @property
    def encodes(self) -> bool:
        """Vectors have no encoder."""
        return self.architecture != "vectors"

    @property
    def parameters(self) -> int:
        """How many parameters it has: W_enc, b_enc, W_dec, b_dec and, if there is one, threshold; of vectors W_dec."""
        if not self.encodes:
            return self.d_sae * self.d_out
        threshold = self.d_sae if self.has_threshold else 0
        return self.d_in * self.d_sae + self.d_sae + self.d_sae * self.d_out + self.d_out + threshold

    def memory_bytes(self, dtype: str) -> int:
        """Estimated bytes on the device when held in `dtype`."""
        return self.parameters * BYTES_PER_PARAMETER[dtype]


BYTES_PER_PARAMETER = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Type of weights → bytes per parameter."""


class ModelFacts(Struct, frozen=True, kw_only=True):
    """The facts about a loaded model that the rules need, such as the width of each hook point; no torch."""

    model_id: str
    revision: str
    commit: str | None
    model_type: str
    dtype: str
    device: str
    num_layers: int
    hidden_size: int
    context_length: int
    memory_bytes: int
    """Bytes of the parameters and buffers, as measured."""
    widths: dict[str, int]
    """Hook kind → width of its activation, the largest of all layers. Kinds that the model lacks are absent."""
    layer_widths: dict[str, tuple[int, ...]] = {}
    """Hook kind → width at each layer, for kinds whose width differs; 0 if the layer has no such hook point."""
    without: dict[str, str] = {}
    """Hook kind that this model, or some of its layers, lack → the reason."""
    before: dict[str, tuple[Before, ...]] = {}
    """Hook kind that is a norm's output → the further hook points of that norm."""
    layer_norm: bool = False
    """Its norms subtract the mean and add a bias; else they are RMS norms."""
    has_chat_template: bool = False
    adds_bos: bool | None = None
    """Whether the tokenizer puts BOS before a text by default; None: unknown."""
    tells_messages: bool = True
    """Whether its chat template and tokenizer show where the messages are among the tokens."""
    cache_positions: int | None = None
    """The most KV cache positions that one generation may take; None: not measured."""
    environment: dict[str, Any] = {}
    """Versions, device, digests; `system_fingerprint` is its digest."""
    vocabulary: int | None = None
    """Every token id below this is valid; None: unknown."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a text, in order."""
    in_turn: str | None = None
    """Why its texts run one after the other; None: they share a step, or it was not said."""

    def width(self, point: HookPoint) -> int:
        """Width of the activation at a hook point; 0 if the layer has no such hook point."""
        widths = self.layer_widths.get(point.kind)
        if point.layer >= self.num_layers:
            return 0
        return self.widths.get(point.kind, 0) if widths is None else widths[point.layer]

    @property
    def quantization(self) -> str | None:
        """The scheme of its weights; None if they are plain numbers of `dtype`."""
        recorded = self.environment.get("quantization")
        return str(recorded["scheme"]) if isinstance(recorded, dict) and "scheme" in recorded else None

    @property
    def can_be_deterministic(self) -> bool:
        """Whether a generation that runs alone, with its prefill in one step, always gives the same tokens. True in
        float32 on a CPU, whose kernels sum in a fixed order for a given number of threads, or with torch's
        deterministic kernels."""
        kernels = self.environment.get("deterministic_algorithms") is True
        return kernels or (self.device == "cpu" and self.dtype == "float32")


class ActiveSae(Struct, frozen=True, kw_only=True):
    """One SAE of an intervention, frozen at admission: everything that a generation under it depends on."""

    sae_id: str
    weights_sha256: str
    hook_point: HookPoint
    hook_point_out: HookPoint | None = None
    mode: Mode = "steer"
    steering: tuple[Edit, ...] = ()
    exclude: tuple[Exclusion, ...] | None = None
    """Positions `reconstruct` leaves unchanged; None: those an edit excludes, sinks if no edit excludes any."""
    attach_position: int = 0
    """Position of its AttachRequested: the engine's key for the SAE."""

    @property
    def written_at(self) -> HookPoint:
        """The hook point where it writes; a transcoder reads at another one."""
        return self.hook_point_out or self.hook_point

    @property
    def changes_text(self) -> bool:
        return self.mode == "reconstruct" or bool(self.steering)

    @property
    def passes(self) -> frozenset[Exclusion]:
        """Positions that `reconstruct` leaves unchanged."""
        if self.exclude is not None:
            return frozenset(self.exclude)
        return frozenset(each for edit in self.steering for each in edit.exclude) or frozenset({"sink"})

    @property
    def asks_for_turns(self) -> bool:
        """It holds at other positions if the prompt is a chat."""
        return "template" in (self.exclude or ()) or any(edit.asks_for_turns for edit in self.steering)


class Monitoring(Struct, frozen=True, kw_only=True):
    """The activations of an attached SAE that are streamed during generation; it changes no generation."""

    features: tuple[int, ...] | None = None
    """Stream only these features; None: all."""
    top_k: int = 10
    """At most this many of the largest activations, without zeros."""
    exclude: tuple[Exclusion, ...] = ()
    """Positions for which none are streamed; empty in older logs."""


class StopWhen(Struct, frozen=True, kw_only=True):
    """The generation ends once `feature` of `sae` is above `above` at a generated token. This is known in the step that
    makes the next token, which is the last one."""

    sae: ActiveSae
    feature: int
    above: float
    exclude: tuple[Exclusion, ...] = ()
    """Positions at which the condition never holds; empty in older logs."""


Intervention: TypeAlias = tuple[ActiveSae, ...]
"""All attached SAEs with hook point, mode and steering, at one log position."""


def intervention_sha256(intervention: Intervention) -> str:
    """Digest of what the intervention does: that of its canonical JSON."""
    return canonical_sha256(msgspec.to_builtins(sae) for sae in intervention)


def canonical_sha256(saes: Iterable[Mapping[str, Any]]) -> str:
    """Sorted keys, no spaces. The attach position and an `exclude` that was not given are left out: interventions keep
    the digest that they have in older logs."""
    silent = (("exclude", None),)
    shown = [{k: v for k, v in sae.items() if k != "attach_position" and (k, v) not in silent} for sae in saes]
    return hashlib.sha256(msgspec.json.encode(shown, order="sorted")).hexdigest()
