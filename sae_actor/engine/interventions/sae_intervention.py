"""One SAE of an intervention, for one generation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...domain.chats import MessageSpan
from ...domain.refs import ActiveSae
from ...errors import InternalError
from ...sae.projections import Projections
from ...sae.steering import Steering
from .positions import Flags, TokenKinds, group_of, mask


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
        self.sae_id = sae.sae_id
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
