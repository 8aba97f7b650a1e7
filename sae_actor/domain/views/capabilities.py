"""What this build can do."""

from __future__ import annotations

from msgspec import Struct

from ..refs import HookKind, Mode
from ..state import State
from ..structs import filled


class Limits(Struct, frozen=True, kw_only=True):
    max_attachments: int
    max_edits: int
    max_strength: float
    max_running: int
    max_waiting: int


class Running(Struct, frozen=True, kw_only=True):
    """How the loaded model runs generations: in one batch or in turn (`in_turn` says why), whether `deterministic` can
    be had, and how many KV cache positions one generation may take."""

    model_id: str
    batching: bool
    in_turn: str | None
    deterministic: bool
    cache_positions: int | None


class Capabilities(Struct, frozen=True, kw_only=True):
    """What this build can do; `families` are the model types with the hook points of each."""

    version: str
    formats: tuple[str, ...]
    architectures: tuple[str, ...]
    hook_points: tuple[HookKind, ...]
    families: dict[str, tuple[str, ...]]
    families_without: dict[str, dict[str, str]]
    """Model type → hook points that it, or some of its layers, lack → why."""
    text_parts: dict[str, str]
    """Multimodal model type → the model type of its text part, which alone is loaded."""
    methods: tuple[str, ...]
    modes: tuple[Mode, ...]
    positions: tuple[str, ...]
    exclusions: tuple[str, ...]
    units: tuple[str, ...]
    conditions: tuple[str, ...]
    limits: Limits
    versions: dict[str, str | None]
    model: Running | None


def running_view(state: State) -> Running | None:
    """How the loaded model runs generations; None where there is none."""
    facts = None if state.model is None else state.model.facts
    if facts is None:
        return None
    batching = facts.environment.get("batching") is True
    return filled(Running, facts, batching=batching, deterministic=facts.can_be_deterministic)
