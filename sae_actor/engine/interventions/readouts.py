"""What is told of rows besides activations: features pooled, the rows themselves, the tokens that they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InternalError
from ...ports import Pooled, Pooling, TokenScore

MOST_LOGITS = 2**25
"""In memory at a time, and of one step: a lens looks at every layer, and others wait for the step."""

LEAST = -9999.0
"""Replaces −inf, which JSON does not have."""


class Lens(NamedTuple):
    """How the model reads its residual stream."""

    unembed: Callable[[Tensor], Tensor]
    """Rows [n, hidden] after the last block → logits [n, vocabulary]."""
    spell: Callable[[int], str]
    vocabulary: int

    def rows(self, layers: int) -> int:
        """Of how many positions as many layers are looked at in a step."""
        return max(1, MOST_LOGITS // (self.vocabulary * layers))

    def tokens(self, x: Tensor, top: int) -> tuple[tuple[TokenScore, ...], ...]:
        """The most probable tokens at each row [n, hidden], best first."""
        return tuple(row for part in torch.split(x, self.rows(1)) for row in self._tokens(part, top))

    def _tokens(self, x: Tensor, top: int) -> list[tuple[TokenScore, ...]]:
        logprobs = self.unembed(x).float().log_softmax(dim=-1)
        if bool(logprobs.isnan().any()):
            raise InternalError("the logits of the lens are not finite")
        best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
        pairs = zip(best.indices.tolist(), best.values.clamp_min(LEAST).tolist(), strict=True)
        return [
            tuple(TokenScore(token, self.spell(token), each) for token, each in zip(*row, strict=True)) for row in pairs
        ]


class Pool:
    """One prompt's features over the counted rows that come by."""

    def __init__(self, how: Pooling, features: int, device: torch.device) -> None:
        self._how = how
        self._counted = 0
        self._values = torch.zeros(features, dtype=torch.float64, device=device)
        self._active = torch.zeros(features, dtype=torch.int32, device=device)

    def add(self, acts: Tensor) -> None:
        """Further counted rows [n, features], in their order."""
        if not len(acts):
            return
        match self._how:
            case "mean":
                self._values += acts.sum(dim=0, dtype=torch.float64)
            case "last":
                self._values = acts[-1].double()
            case "max":
                most = acts.amax(dim=0).double()
                self._values = most if self._counted == 0 else torch.maximum(self._values, most)
        self._active += (acts > 0).sum(dim=0, dtype=torch.int32)
        self._counted += len(acts)

    def result(self) -> Pooled:
        mean = self._how == "mean" and self._counted
        values = self._values / self._counted if mean else self._values
        return Pooled(_bytes(values.float()), _bytes(self._active))


def joined_pools(how: Pooling, before: Pooled, told: Pooled, counted: tuple[int, int]) -> Pooled:
    """Those of two successive chunks, with so many counted positions each."""
    one, other = counted
    if not one or not other:
        return told if other else before
    a, b = (torch.frombuffer(bytearray(each.values), dtype=torch.float32).double() for each in (before, told))
    match how:
        case "mean":
            values = (one * a + other * b) / (one + other)
        case "last":
            values = b
        case "max":
            values = torch.maximum(a, b)
    active = sum(torch.frombuffer(bytearray(each.active), dtype=torch.int32) for each in (before, told))
    return Pooled(_bytes(values.float()), _bytes(torch.as_tensor(active)))


def raw_of(x: Tensor) -> bytes:
    """float32 [n, width]"""
    return _bytes(x.float())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
