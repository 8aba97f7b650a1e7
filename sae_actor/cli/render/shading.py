"""The tokens of an answer, coloured by a feature's activation and underlined where they were edited."""

from __future__ import annotations

import re
from typing import Any

Answer = dict[str, Any]

SHADES = (230, 223, 216, 209, 202)
"""Backgrounds of the 256 colours, for each fifth of the largest activation; the text on them is black."""
UNDERLINED = "4"
ESCAPE = "\N{ESCAPE}["


class Shading:
    """Takes the chunks of an answer with `sae.details`, each of one token and of the positions that were run for it."""

    def __init__(self, feature: int, sae_id: str | None = None) -> None:
        """sae_id: whose feature, if several SAEs are read."""
        self._feature, self._sae_id = feature, sae_id
        self._texts: list[str] = []
        self._positions: dict[int, Answer] = {}
        self._first = 0
        """Position of the first token of the answer."""

    def add(self, text: str, sae: Answer) -> None:
        """The text of a chunk, and its extension object."""
        positions = sae.get("positions") or ()
        if positions and not self._positions:
            self._first = positions[-1]["position"] + 1
        self._positions.update((each["position"], each) for each in positions)
        self._texts.append(text)

    def drawn(self) -> str:
        """The whole answer. The last token was not run, so it stays plain."""
        largest = self._largest()
        return "".join(
            _styled(text, self._style(self._positions.get(self._first + at), largest))
            for at, text in enumerate(self._texts)
        )

    def legend(self) -> str:
        label = next((f" ({found['label']})" for found in self._of_answer() if found.get("label")), "")
        edited = any(each["edits"] for at, each in self._positions.items() if at >= self._first)
        about = f"shaded: feature {self._feature}{label}, {self._largest():.4g} at most"
        return about + ("; underlined: edited" if edited else "")

    def _of_answer(self) -> list[Answer]:
        read = (self._read(each) for at, each in self._positions.items() if at >= self._first)
        return [found for found in read if found is not None]

    def _largest(self) -> float:
        return max((abs(found["before"]) for found in self._of_answer()), default=0.0)

    def _read(self, position: Answer) -> Answer | None:
        for found in position.get("features") or ():
            if found["feature"] == self._feature and self._sae_id in (None, found["sae_id"]):
                return dict(found)
        return None

    def _style(self, position: Answer | None, largest: float) -> str:
        if position is None:
            return ""
        found = self._read(position)
        share = 0.0 if found is None or not largest else abs(found["before"]) / largest
        level = min(len(SHADES), int(share * len(SHADES)) + 1) if share else 0
        colours = f"38;5;16;48;5;{SHADES[level - 1]}" if level else ""
        return ";".join(filter(None, (UNDERLINED if position["edits"] else "", colours)))


def _styled(text: str, style: str) -> str:
    """Line by line: a terminal would colour the rest of the line too."""
    return re.sub(r"[^\n]+", lambda part: f"{ESCAPE}{style}m{part[0]}{ESCAPE}0m", text) if style else text
