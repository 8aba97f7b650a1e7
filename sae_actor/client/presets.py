"""The calls about presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .wire import Answer


class _Sends(Protocol):
    """What these calls need of a client."""

    def command(self, type: str, **fields: Any) -> Answer: ...

    def _get(self, path: str) -> Answer: ...


class PresetCalls:
    """A part of `Client`."""

    def presets(self: _Sends) -> Answer:
        """`{"presets": […]}`: each with `position`, its version, and whether it is `usable` now."""
        return self._get("/api/presets")

    def save_preset(
        self: _Sends, name: str, interventions: Sequence[Mapping[str, Any]], description: str | None = None
    ) -> Answer:
        """Save `[{"sae_id", "mode"?, "steering"?, "exclude"?}, …]` under a name; `generate(…, model="default@NAME")` or
        `sae={"preset": NAME}` uses it."""
        return self.command("SavePreset", name=name, interventions=tuple(interventions), description=description)

    def delete_preset(self: _Sends, name: str) -> Answer:
        return self.command("DeletePreset", name=name)
