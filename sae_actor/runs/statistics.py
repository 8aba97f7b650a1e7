"""What the newest profile found of an SAE's features, where the SAE is attached now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import msgspec

from ..domain.measuring.state import RunState
from ..domain.measuring.waiting import sae_of
from ..domain.state import State
from ..errors import SAEError
from ..ports import ProfiledFeatures
from .job import in_thread
from .store import RunFolder


class Profiles:
    """Looks into completed runs of kind `profile`. `state` gives the state of now."""

    def __init__(self, folder: RunFolder, state: Callable[[], State]) -> None:
        self._folder = folder
        self._state = state

    async def row(self, attach_position: int, feature: int) -> dict[str, Any] | None:
        """What the newest profile says of a feature; None without one."""
        run = self._newest(attach_position)
        rows = {} if run is None else await in_thread(lambda: self._rows(run, (feature,)))
        return rows.get(feature)

    async def known(self, attach_position: int, features: Iterable[int]) -> ProfiledFeatures | None:
        """For the units `max` and `norm`."""
        run = self._newest(attach_position)
        if run is None or run.summary is None:
            return None
        rows = await in_thread(lambda: self._rows(run, sorted(set(features))))
        maxima = {feature: float(row["max"]) for feature, row in rows.items() if row["max"] > 0}
        return ProfiledFeatures(maxima=maxima, median_norm=run.summary.get("median_norm"))

    def _newest(self, attach_position: int) -> RunState | None:
        """Of the same weights at the same hook point: elsewhere a feature does other things."""
        state = self._state()
        mine = next((a for a in state.attached if a.request_position == attach_position), None)
        if mine is None:
            return None
        found = (
            run
            for run in state.runs.values()
            if run.kind == "profile" and run.status == "completed" and sae_of(mine) in run.saes
        )
        return max(found, key=lambda run: run.request_position, default=None)

    def _rows(self, run: RunState, features: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Row n is that of feature n - 1. Empty if the file is gone."""
        try:
            with closing(self._folder.open(run.run_id)) as file:
                pages = {feature: file.rows(feature, 1) for feature in features}
        except SAEError:
            return {}
        return {feature: msgspec.json.decode(page[0][1]) for feature, page in pages.items() if page}
