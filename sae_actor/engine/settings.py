"""The settings of the engine."""

from __future__ import annotations

from msgspec import Struct


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What a deployment chooses."""

    max_running: int = 32
    """Generations that run at the same time, in one forward pass if the model allows it."""
    max_waiting: int = 1024
    """Generations that may wait; one more is refused with `mailbox_full`."""
    prompt_tokens: int = 512
    """Prompt tokens in one step: longer prompts are prefilled in chunks, so that other generations continue."""
    cache_bytes: int = 0
    """Bytes for the KV cache of all generations; 0: half of what is free after the model is loaded."""
    threads: int | None = None
    """torch's threads for one operation; None leaves torch's choice. Below the free cores is often faster."""
    drain_seconds: float = 3.0
    """How long a generation may continue under an SAE that `retain` drops."""
