"""Feature edits as differences added to an activation, for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..domain.refs import Edit
from ..errors import BadRequestError, FeatureOutOfRangeError
from .autoencoder import SAE, Rows
from .encoder import Encoder
from .overflow import refuse_overflow
from .projections import Projections

ON_ACTIVATION = frozenset({"add", "set", "scale", "cap"})
READING = frozenset({"set", "scale", "cap"})
"""Methods whose difference depends on the feature's activation."""


class Difference(NamedTuple):
    delta: Tensor
    """[n, d_out] in the type of x; zero where no edit holds."""
    held: Tensor
    """bool [n_edits, n]: `active`, narrowed by the edits' conditions. Write only rows where one holds."""


class Steering:
    """The edits of one SAE, ready to be applied: what they need of the weights, gathered once.

    With a the SAE's activation of the edited feature for the row, d its effective decoder row (W_dec[i] times
    every scaling of the output, the row's own included) and v = d / |d|:

        add   s·d      set   (s − a)·d      scale   (s − 1)·a·d      cap   (min(a, s) − a)·d

    Projections act jointly, see `Projections`; alone they are (s − 1)(x·v)·v and (s − x·v)·v. All differences are
    taken from the same x and summed. Does not change after `prepare`; used by one thread at a time.
    """

    def __init__(self, sae: SAE, edits: Sequence[Edit], blocks: list[tuple[Tensor, Projections]] | None = None) -> None:
        """Use `prepare`, or `joined`, which gives `blocks`: projections that never hold at a row together, and which
        edits they are."""
        for edit in edits:
            for feature in (edit.feature, *(() if edit.when is None else (edit.when.feature,))):
                if not 0 <= feature < sae.spec.d_sae:
                    raise FeatureOutOfRangeError(
                        f"feature {feature} is not below d_sae {sae.spec.d_sae}", feature=feature, d_sae=sae.spec.d_sae
                    )
            if edit.unit != "raw":
                raise BadRequestError(f"unit {edit.unit} must be resolved to raw strengths first", param="unit")
        self.sae = sae
        self.edits = tuple(edits)
        on = [n for n, edit in enumerate(edits) if edit.method in ON_ACTIVATION]
        projected = [n for n, edit in enumerate(edits) if edit.method not in ON_ACTIVATION]
        conditional = [n for n, edit in enumerate(edits) if edit.when is not None]
        device, dtype = sae.device, sae.dtype

        def numbers(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        def indexes(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        # Edits on activations: coefficient of d = offset + slope·a, for cap min(s − a, 0).
        self._on = indexes(on)  # [m]
        self._features = indexes([edits[n].feature for n in on])  # [m]
        self._strength = numbers([edits[n].strength for n in on])  # [m]
        self._offset = numbers([edits[n].strength if edits[n].method in ("add", "set") else 0.0 for n in on])
        self._slope = numbers([_slope(edits[n]) for n in on])
        self._is_cap = torch.tensor([edits[n].method == "cap" for n in on], dtype=torch.bool, device=device)
        self._rows = sae.decoder_rows(self._features)  # [m, d_out]
        # Activations that are read: of edited features, then of conditions.
        wanted = [edits[n].feature if edits[n].method in READING else -1 for n in on]
        conditions = [edits[n].when for n in conditional]
        read = sorted({f for f in wanted if f >= 0} | {when.feature for when in conditions if when is not None})
        place = {feature: at for at, feature in enumerate(read)}
        self._read = indexes(read)  # [r]
        self._place = indexes([place.get(f, len(read)) for f in wanted])  # [m], len(read) is a column of zeros
        self._needing = indexes([n for n in on if edits[n].method in READING or edits[n].when] + conditional)
        self._encoder: Encoder | None = sae.encoder.select(self._read) if read and sae.independent else None
        self._conditional = indexes(conditional)  # [c]
        self._when_place = indexes([place[when.feature] for when in conditions if when is not None])  # [c]
        self._above = numbers([when.above for when in conditions if when is not None])  # [c]
        # Projections.
        self.projected = indexes(projected)
        """[p]: which edits are projections."""
        self.projections: Projections | None = None
        """All of them."""
        if projected and blocks is None:
            relative = torch.tensor([edits[n].method == "project" for n in projected], dtype=torch.bool, device=device)
            rows = sae.decoder_rows(indexes([edits[n].feature for n in projected]))  # [p, d_out]
            self.projections = Projections(rows, numbers([edits[n].strength for n in projected]), relative)
            blocks = [(self.projected, self.projections)]
        self._blocks = blocks or []

    @classmethod
    def prepare(cls, sae: SAE, edits: Sequence[Edit], written_in: torch.dtype | None = None) -> Steering:
        """Gather decoder rows and encoder columns of `edits`; reads nothing else of the weights.

        `FeatureOutOfRangeError` for a feature that the SAE lacks, `BadRequestError` for a unit other than raw,
        `SAEUnsupportedError` for a strength beyond what the SAE's type holds, or `written_in`, the model's.
        """
        steering = cls(sae, edits)
        refuse_overflow(sae, steering.edits, written_in)
        return steering

    @classmethod
    def joined(cls, several: Sequence[Steering]) -> Steering:
        """The edits of several generations in one step under one SAE, in order: those of two never hold at one row."""
        edits: list[Edit] = []
        blocks = []
        for each in several:
            blocks += [(at + len(edits), projections) for at, projections in each._blocks]
            edits += each.edits
        return cls(several[0].sae, edits, blocks)

    @cached_property
    def finite(self) -> bool:
        """Whether all that was gathered is: 0 · NaN of one edit would reach the rows of others."""
        gathered = [self._rows, *([] if self._encoder is None else [self._encoder.W])]
        sound = all(projections.finite for _, projections in self._blocks)
        return sound and all(bool(torch.isfinite(tensor).all()) for tensor in gathered)

    def sound(self, x: Tensor, x_read: Tensor | None = None) -> bool:
        """Whether what the SAE gives at x [n, d_out] without the edits is finite; x_read as in `difference`."""
        everywhere = torch.ones(len(self.edits), len(x), dtype=torch.bool, device=x.device)
        acts, rows = self._activations(x if x_read is None else x_read, everywhere)
        given = [acts, *(part for part in rows if part is not None)]
        if len(self.projected):
            given.append(x.to(self.sae.dtype))
        return self.finite and all(bool(torch.isfinite(part).all()) for part in given)

    def sound_rebuilt(self, x: Tensor, x_read: Tensor | None = None) -> bool:
        """Whether the SAE's output in place of x, without the edits, is finite in the type of x."""
        return bool(torch.isfinite(self.sae(x if x_read is None else x_read).to(x.dtype)).all())

    @property
    def nbytes(self) -> int:
        """Bytes gathered besides the SAE's own."""
        gathered = [self._rows, *([] if self._encoder is None else [self._encoder.W])]
        return sum(int(each.nbytes) for each in gathered) + sum(each.nbytes for _, each in self._blocks)

    def difference(
        self, x: Tensor, active: Tensor, x_read: Tensor | None = None, alone: Tensor | None = None
    ) -> Difference:
        """What the edits add to x.

        x [n, d_out]: activations arriving where the SAE writes; active bool [n_edits, n]: rows at which each
        edit holds, in the order of `prepare`; x_read [n, d_in]: activations where a transcoder reads (x if None);
        alone bool [n]: rows at which the projections are computed here (all if None), and not with other SAEs'.
        """
        delta, held = self._delta(x, active, x_read, alone)
        return Difference(delta.to(x.dtype), held)

    def apply(self, x: Tensor, active: Tensor, x_read: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x with the difference added in the SAE's type and rounded once, and `held`; other rows bit for bit x."""
        delta, held = self._delta(x, active, x_read)
        edited = held.any(dim=0)[:, None]  # [n, 1]
        return torch.where(edited, (x.to(delta.dtype) + delta).to(x.dtype), x), held

    def reconstruct(self, x: Tensor, active: Tensor, x_read: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The SAE's output in place of x, [n, d_out] in its type: encode, edit the activations, decode; and `held`.

        `add` means a + s, projections act on the output, TopK's choice is not made again; skip terms are in.
        """
        source = x if x_read is None else x_read
        z, rows = self.sae.read(source)
        acts = self.sae.encode_rows(z)  # [n, d_sae]
        held = self._held(active, acts[:, self._read])
        if len(self._on):
            coefficients = self._coefficients(held, acts[:, self._read])  # [n, m]
            acts = acts.index_add(1, self._features, coefficients)  # [n, d_sae]
        y = self.sae.skip(self.sae.decode_rows(acts, rows), source)  # [n, d_out]
        for edits, projections in self._blocks:
            y = y + projections.difference(y, held[edits])
        return y.to(x.dtype), held

    def _delta(
        self, x: Tensor, active: Tensor, x_read: Tensor | None, alone: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        source = x if x_read is None else x_read
        acts, rows = self._activations(source, active)
        held = self._held(active, acts)
        inside = x.to(self.sae.dtype)  # [n, d_out]
        delta = torch.zeros_like(inside)
        if len(self._on):
            delta = self._coefficients(held, acts) @ self._rows  # [n, m] @ [m, d_out]
            if rows.scale is not None:
                delta = delta * rows.scale  # [n, 1]
        for edits, projections in self._blocks:
            here = held[edits]  # [p, n]
            delta = delta + projections.difference(inside, here if alone is None else here & alone)
        return delta.masked_fill(~held.any(dim=0)[:, None], 0), held

    def _activations(self, source: Tensor, active: Tensor) -> tuple[Tensor, Rows]:
        """Activations [n, r] of the features that are read, and the rows' statistics."""
        scaled = len(self._on) > 0 and self.sae.per_row
        if not len(self._read) and not scaled:
            return source.new_zeros(len(source), 0, dtype=self.sae.dtype), Rows(None, None)
        z, rows = self.sae.read(source)
        if not len(self._read):
            return z.new_zeros(len(z), 0), rows
        if self._encoder is not None:
            return self._encoder(z), rows
        # Features compete: encode in full, but only the rows that need it.
        needed = active[self._needing].any(dim=0).nonzero().squeeze(1)
        acts = z.new_zeros(len(z), len(self._read))
        if len(needed):
            acts[needed] = self.sae.encode_rows(z[needed])[:, self._read]
        return acts, rows

    def _held(self, active: Tensor, acts: Tensor) -> Tensor:
        """`active` [n_edits, n] where the conditions are met; acts [n, r]."""
        if not len(self._conditional):
            return active
        met = (acts[:, self._when_place] > self._above).T  # [c, n]
        return active.index_copy(0, self._conditional, active[self._conditional] & met)

    def _coefficients(self, held: Tensor, acts: Tensor) -> Tensor:
        """Factor of each edit's d at each row, [n, m]; acts [n, r]."""
        if len(self._read):
            padded = torch.cat((acts, acts.new_zeros(len(acts), 1)), dim=1)  # [n, r + 1]
            a = padded[:, self._place]  # [n, m]
            linear = self._offset + self._slope * a
            coefficients = torch.where(self._is_cap, (self._strength - a).clamp_max(0), linear)
        else:
            coefficients = self._offset.expand(len(acts), -1)
        return coefficients.masked_fill(~held[self._on].T, 0)


def _slope(edit: Edit) -> float:
    """How the coefficient of d changes with a (cap apart)."""
    return {"set": -1.0, "scale": edit.strength - 1.0}.get(edit.method, 0.0)
