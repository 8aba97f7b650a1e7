"""Runs: long measurements. Their texts and rows are on disk; the log has what they were asked, digests and counts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ..refs import ActiveSae, HookPoint
from .payload import Intent, Payload, Problem

RunKind: TypeAlias = Literal["evaluate", "profile", "contrast", "sweep"]
RunId: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z", description="id of a run")]


class RunModel(Struct, frozen=True, kw_only=True):
    """The model that a run measures."""

    model_id: str
    commit: str | None = None
    files_sha256: str | None = None
    """Digest of the digests of its files, where they are known."""


class RunSae(Struct, frozen=True, kw_only=True):
    """An SAE that a run needs, as it was attached when the run was asked for."""

    sae_id: str
    weights_sha256: str
    hook_point: HookPoint
    hook_point_out: HookPoint | None = None
    dtype: str = "float32"


class RunTexts(Struct, frozen=True, kw_only=True):
    """A list of texts that a run reads."""

    role: str
    """`texts`, `prompts`, `continuations`, `positive` or `negative`."""
    count: int
    sha256: str
    """Of the texts as lines of JSON."""
    file: str | None = None
    texts_id: str | None = None
    """Where they came from; both null: the command brought them."""


class RunVariant(Struct, frozen=True, kw_only=True):
    """One of the interventions that a sweep compares, with raw strengths."""

    name: str
    intervention: tuple[ActiveSae, ...] = ()
    intervention_sha256: str = ""
    baseline: bool = False


class RunRequested(Intent, frozen=True, kw_only=True):
    run_id: str
    kind: RunKind
    name: str | None = None
    spec: dict[str, Any]
    """What is measured, without the texts."""
    model: RunModel
    saes: tuple[RunSae, ...] = ()
    texts: tuple[RunTexts, ...] = ()
    variants: tuple[RunVariant, ...] = ()
    seeds: tuple[int, ...] = ()


class RunCompleted(Payload, frozen=True, kw_only=True):
    request_position: int
    run_id: str
    rows: int
    rows_sha256: str
    """Of the rows as lines of JSON."""
    summary: dict[str, Any]
    texts: tuple[RunTexts, ...] = ()
    environments: dict[str, dict[str, Any]]
    """Digest of each environment that rows were made under → the environment."""


class RunFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    run_id: str
    error: Problem


class RunCancelled(Intent, frozen=True, kw_only=True):
    request_position: int
    run_id: str


class RunDeleted(Intent, frozen=True, kw_only=True):
    """Its texts and rows are erased."""

    run_id: str
