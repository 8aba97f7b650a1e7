"""The model."""

from __future__ import annotations

from ..refs import ModelFacts
from .payload import Intent, Payload, Problem


class ModelLoadRequested(Intent, frozen=True, kw_only=True):
    model: str
    revision: str
    dtype: str
    device: str
    joined: int | None = None
    """Position of the running load of the same model that this one shares the outcome of."""
    reused: bool = False
    """The model is loaded already."""
    quantization: str | None = None
    """What bitsandbytes was asked for; None: nothing."""


class ModelLoaded(Payload, frozen=True, kw_only=True):
    request_position: int
    model: ModelFacts
    restored: bool = False
    reused: bool = False


class ModelLoadFailed(Payload, frozen=True, kw_only=True):
    request_position: int
    error: Problem
    restored: bool = False


class ModelUnloaded(Intent, frozen=True, kw_only=True):
    model_id: str | None = None
