"""One SAE of an intervention, for one generation; and the edits of several generations as one set for their SAE."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ...domain.chats import MessageSpan
from ...domain.refs import ActiveSae
from ...errors import InternalError
from ...sae.projections import Projections
from ...sae.steering import Steering
from .positions import Flags, TokenKinds, group_of, mask

if TYPE_CHECKING:
    from .hook_site import SaeRows

MAX_JOINED = 8
JOINED_BYTES = 64 * 2**20
"""What the sets that are kept may take together, the newest apart."""


class SaeIntervention:
    """One SAE of an intervention at its hook point, for one generation."""

    def __init__(
        self,
        sae: ActiveSae,
        steering: Steering,
        prompt: int,
        turns: Sequence[MessageSpan] = (),
        marks: TokenKinds | None = None,
    ) -> None:
        """`steering` holds the edits of `sae`; `prompt` is the number of prompt tokens, `marks` holds their
        kinds if an edit excludes some. Raises as `group_of`."""
        self.attach_position = sae.attach_position
        self.steering = steering
        self.reconstructs = sae.mode == "reconstruct"
        self.read_at = sae.hook_point
        self.write_at = sae.hook_point_out or sae.hook_point
        self.read: Tensor | None = None
        """This step's activation at `read_at` [n, d_in], if that differs from `write_at`."""
        of_edit = [group_of(edit, prompt, turns) for edit in sae.steering]
        self._groups = list(dict.fromkeys(of_edit))
        self._group_of_edit = np.array([self._groups.index(group) for group in of_edit], dtype=np.intp)
        self.without_sinks: Flags = np.array([group.without_sinks for group in of_edit], dtype=np.bool_)
        """[n_edits]"""
        self._marks = marks
        self.passes = sae.passes
        """What `reconstruct` passes through."""

    @property
    def leaves_out_sinks(self) -> bool:
        if self.reconstructs and "sink" in self.passes:
            return True
        return any(group.without_sinks for group in self._groups)

    @property
    def projections(self) -> Projections | None:
        """What is computed together with other SAEs' projections at the hook point."""
        return None if self.reconstructs else self.steering.projections

    def covered(self, first: int, stop: int) -> Flags | None:
        """[n_edits, n]: which positions the edits cover; None if the SAE has nothing to do."""
        if not self._groups:
            return np.zeros((0, stop - first), dtype=np.bool_) if self.reconstructs else None
        masks = np.stack([mask(group.ranges, first, stop) for group in self._groups])
        return masks[self._group_of_edit] if self.reconstructs or masks.any() else None

    def left_out(self, first: int, stop: int) -> Flags | None:
        """[n_edits, n]: which positions are excluded because of their tokens; None for none."""
        if not any(group.without_special or group.without_template for group in self._groups):
            return None
        special, template = self._kinds(first, stop)
        groups = [group.without_special & special | group.without_template & template for group in self._groups]
        return np.stack(groups)[self._group_of_edit]

    def passed(self, first: int, stop: int) -> Flags:
        """[n]: which positions `reconstruct` passes through for their tokens' sake."""
        passed = np.zeros(stop - first, dtype=np.bool_)
        if self.passes <= {"sink"}:
            return passed
        for kind, marked in zip(("special", "template"), self._kinds(first, stop), strict=True):
            if kind in self.passes:
                passed |= marked
        return passed

    def _kinds(self, first: int, stop: int) -> tuple[Flags, Flags]:
        """[n] each: special tokens, tokens of the template."""
        if self._marks is None:
            raise InternalError("the kinds of the tokens are not known")
        return self._marks.special(first, stop), self._marks.template(first, stop)


class Joined(NamedTuple):
    """The edits of all generations in a group, over the rows [m] of all."""

    steering: Steering
    covered: Flags
    """[edits, m]"""
    without_sinks: Flags
    """[edits]"""
    left_out: Flags | None
    """[edits, m]: rows excluded because of their tokens; None for none."""
    starts: Sequence[int]
    """For each generation: where its edits begin among all."""


class MergedEdits:
    """The edits of generations in one step as one set, kept from step to step while the same ones run."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Steering, ...], Steering] = OrderedDict()

    def of(self, group: Sequence[SaeRows]) -> Joined:
        """The edits of a group of generations at one SAE, over its rows in order. Generations with the same edits share
        them. `InternalError` if edits cannot be joined."""
        if len(group) == 1:
            part, entry, _, covered = group[0]
            return Joined(part.steering, covered, part.without_sinks, part.left_out(entry.first, entry.stop), (0,))
        places: dict[tuple[Steering, bytes], int] = {}
        starts: list[int] = []
        edits = 0
        for each in group:
            key = (each.part.steering, each.part.without_sinks.tobytes())
            if key not in places:
                places[key] = edits
                edits += len(each.part.without_sinks)
            starts.append(places[key])
        rows = sum(each.entry.size for each in group)
        covered = np.zeros((edits, rows), dtype=np.bool_)
        without = np.zeros(edits, dtype=np.bool_)
        left_out: Flags | None = None
        at = 0
        for each, start in zip(group, starts, strict=True):
            mine = slice(start, start + len(each.part.without_sinks)), slice(at, at + each.entry.size)
            covered[mine] = each.covered
            without[mine[0]] = each.part.without_sinks
            own = each.part.left_out(each.entry.first, each.entry.stop)
            if own is not None:
                left_out = np.zeros_like(covered) if left_out is None else left_out
                left_out[mine] = own
            at += each.entry.size
        steering = self._steering(tuple(steering for steering, _ in places))
        return Joined(steering, covered, without, left_out, starts)

    def _steering(self, steerings: tuple[Steering, ...]) -> Steering:
        """The edits of all, in order."""
        if len(steerings) == 1:
            return steerings[0]
        joined = self._kept.pop(steerings, None)
        if joined is None:
            if not all(each.finite for each in steerings):
                raise InternalError("the SAE's result for an edit is not finite")
            joined = Steering.joined(steerings)
        self._kept[steerings] = joined
        taken = sum(each.nbytes for each in self._kept.values())
        while len(self._kept) > 1 and (len(self._kept) > MAX_JOINED or taken > JOINED_BYTES):
            taken -= self._kept.popitem(last=False)[1].nbytes
        return joined

    def clear(self) -> None:
        """Hold no SAE any more."""
        self._kept.clear()
