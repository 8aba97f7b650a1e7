"""Small slots."""

from __future__ import annotations

import pytest

from sae_actor.engine.decoding import kv_cache


@pytest.fixture
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts outgrow their slots often."""
    monkeypatch.setattr(kv_cache, "SMALLEST", 8)
    monkeypatch.setattr(kv_cache, "GROWTH", 1)
