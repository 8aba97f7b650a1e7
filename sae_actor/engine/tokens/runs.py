"""The runs of an answer's text."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class RunKind(Enum):
    """What a run of characters is to the reader."""

    SAID = "said"
    THOUGHT = "thought"
    MARK = "mark"
    """A whole mark between reasoning and content: part of the text, but of neither."""
    FORM = "form"
    """As a mark, but not a whole one: a channel's name, line ends around a block."""
    HIDDEN = "hidden"
    """A special token that is left out of the text."""
    JOINT = "joint"
    """Not made by the model: keeps two messages of one kind apart."""


class Run(NamedTuple):
    text: str
    kind: RunKind
    field: RunKind = RunKind.SAID
    """For a joint: which of the two it belongs to."""

    @property
    def whole(self) -> str:
        """Its part of the whole text."""
        return "" if self.kind in (RunKind.HIDDEN, RunKind.JOINT) else self.text


def told(runs: list[Run], kind: RunKind) -> str:
    """The content, or the reasoning, of the runs."""
    return "".join(run.text for run in runs if run.kind is kind or (run.kind is RunKind.JOINT and run.field is kind))
