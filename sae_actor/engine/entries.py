"""A text at a hook point in one step: its rows, which SAE writes there, and what was done to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import SAEError
from .positions import Flags

if TYPE_CHECKING:
    from .hooks import Part, Site


@dataclass
class Reading:
    """What a hook did to the rows of one text in one step."""

    calls: int = 0
    failure: SAEError | None = None
    at_fault: int | None = None
    """attach_position of the SAE that failed; None: none did."""
    x_finite: bool = True
    new_finite: bool = True
    edited: Sequence[bool] = ()
    """Of each row; empty where nothing was to be done."""
    passed: Sequence[bool] = ()
    """Rows that were left alone as excluded."""
    sinks: Sequence[bool] = ()
    ratios: Sequence[float] = ()
    """|difference| / |x|"""


class Entry(NamedTuple):
    """A text at a hook point: positions first … stop − 1 are the rows from `row` on."""

    site: Site
    first: int
    stop: int
    row: int
    prompt: int

    @property
    def size(self) -> int:
        return self.stop - self.first


class Writing(NamedTuple):
    """One SAE of one text in one step."""

    part: Part
    entry: Entry
    at: int
    """First of its rows among those that are computed."""
    covered: Flags
    """[n_edits, n]"""
