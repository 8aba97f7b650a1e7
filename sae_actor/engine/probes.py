"""Activations of an SAE at every position that is run, before any edit at its hook point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..architectures import Hook
from ..errors import FeatureOutOfRangeError, InternalError
from ..ports import Activations, FeatureActivation, Watch
from ..sae import SAE

MOST_VALUES = 16 * 2**20
"""Activations that are in memory at once: long prompts are encoded some rows at a time."""

Row = tuple[FeatureActivation, ...]


class Probe:
    """One SAE that is read during one text."""

    def __init__(self, watch: Watch, sae: SAE, hook: Hook) -> None:
        """`FeatureOutOfRangeError` for a feature that the SAE lacks."""
        d_sae = sae.spec.d_sae
        for feature in watch.features or ():
            if feature >= d_sae:
                raise FeatureOutOfRangeError(
                    f"feature {feature} is not below d_sae {d_sae}", feature=feature, d_sae=d_sae
                )
        self.at_fault: int | None = None
        """attach_position, once what the model gave was found good."""
        self.hook = hook
        self._watch = watch
        self._sae = sae
        wanted = watch.features
        self._features = None if wanted is None else torch.tensor(wanted, dtype=torch.long, device=sae.device)
        self._encoder = sae.encoder.select(self._features) if self._features is not None and sae.independent else None
        self._first = self._count = 0
        self._x: Tensor | None = None

    def begin(self, first: int, stop: int) -> None:
        """The next step runs positions `first` … `stop` − 1."""
        self._first, self._count, self._x = first, stop - first, None

    def see(self, x: Tensor) -> None:
        """What the hook calls; nothing is computed inside of the model's forward pass."""
        self._x = x.clone() if self.hook.in_place else x

    def take(self) -> Activations:
        """The activations of the step's positions. `InternalError` where the model did not come by, or they are
        not finite."""
        x, self._x, self.at_fault = self._x, None, None
        if x is None or x.numel() != self._count * self.hook.width:
            raise InternalError(f"the activation at {self._watch.sae.hook_point} was not read")
        rows = x.reshape(self._count, self.hook.width)
        if not bool(torch.isfinite(rows).all()):
            raise InternalError(f"the model's activation at {self._watch.sae.hook_point} is not finite")
        self.at_fault = self._watch.sae.attach_position
        size = max(1, MOST_VALUES // self._sae.spec.d_sae)
        told = tuple(row for part in torch.split(rows, size) for row in self._rows(part))
        return Activations(sae_id=self._watch.sae.sae_id, first=self._first, rows=told)

    def _rows(self, rows: Tensor) -> list[Row]:
        z, _ = self._sae.read(rows)
        if self._encoder is not None:
            acts = self._encoder(z)  # [n, asked]
        else:
            acts = self._sae.encode_rows(z)  # [n, d_sae]
            acts = acts if self._features is None else acts[:, self._features]
        if not bool(torch.isfinite(acts).all()):
            raise InternalError(f"the activations at {self._watch.sae.hook_point} are not finite")
        if self._watch.top_k is None:
            return [self._named(range(acts.shape[1]), row) for row in acts.tolist()]
        chosen = acts.abs().topk(min(self._watch.top_k, acts.shape[1]), dim=-1).indices  # [n, k]
        values = acts.gather(1, chosen)
        told = zip(chosen.tolist(), values.tolist(), strict=True)
        # Descending, so what is off is at the end.
        return [self._named(places[: sum(map(bool, row))], row) for places, row in told]

    def _named(self, places: range | list[int], values: list[float]) -> Row:
        asked = self._watch.features
        return tuple(
            FeatureActivation(place if asked is None else asked[place], value)
            for place, value in zip(places, values, strict=False)
        )
