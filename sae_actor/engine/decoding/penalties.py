"""Settings that change the logits of single tokens: penalties for tokens that occurred, and `logit_bias`.

Sparse: a table per generation with a column for each token that is changed, kept up to date token by token on the CPU.
A step joins the tables of its generations, so that it takes one gather and one scatter for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...domain.events import Sampling
from ...ports import GenerationRequest

_REPETITION, _FREQUENCY, _PRESENCE, _BIAS = range(4)
"""Rows of a table: what the logit is divided by, what is taken from it twice, and what is added to it."""


class Penalties:
    """The table of one generation."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._repetition = sampling.repetition_penalty
        self._frequency = sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        self._counts = self._repetition != 1 or self._frequency != 0 or self._presence != 0
        """Tokens of the answer matter."""
        seen = dict.fromkeys(prompt) if self._repetition != 1 else {}
        bias = dict(sampling.logit_bias)
        self._place = {token: at for at, token in enumerate({**seen, **bias})}
        self._ids = np.fromiter(self._place, dtype=np.int64, count=len(self._place))
        self._table = np.zeros((4, len(self._place)), dtype=np.float32)
        self._table[_REPETITION] = [self._repetition if token in seen else 1.0 for token in self._place]
        self._table[_BIAS] = [bias.get(token, 0.0) for token in self._place]
        self._times: dict[int, int] = {}
        """Of each token in the answer."""

    @classmethod
    def of(cls, request: GenerationRequest) -> Penalties | None:
        """None if the settings change no logit."""
        sampling = request.sampling
        settings = sampling.repetition_penalty - 1, sampling.frequency_penalty, sampling.presence_penalty
        return cls(sampling, request.token_ids) if any(settings) or sampling.logit_bias else None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The tokens that are changed, each once."""
        return self._ids[: len(self._place)]

    @property
    def table(self) -> NDArray[np.float32]:
        """[4, tokens]"""
        return self._table[:, : len(self._place)]

    def add(self, token: int) -> None:
        """The answer goes on with it."""
        if not self._counts:
            return
        times = self._times[token] = self._times.get(token, 0) + 1
        at = self._place.get(token)
        if at is None:
            at = self._place[token] = len(self._place)
            if at == len(self._ids):
                more = max(64, at)
                self._ids = np.concatenate([self._ids, np.zeros(more, dtype=np.int64)])
                self._table = np.concatenate([self._table, np.zeros((4, more), dtype=np.float32)], axis=1)
            self._ids[at] = token
        self._table[_REPETITION, at] = self._repetition
        self._table[_FREQUENCY, at] = times * self._frequency
        self._table[_PRESENCE, at] = self._presence


def penalise(logits: Tensor, tables: Sequence[tuple[int, Penalties]]) -> None:
    """Change the rows of `logits` [rows, vocabulary], float32 and contiguous, as their tables say."""
    ids = np.concatenate([each.ids for _, each in tables])
    first = np.repeat([row * logits.shape[1] for row, _ in tables], [len(each.ids) for _, each in tables])
    at = torch.from_numpy(ids + first).to(logits.device)
    joined = np.concatenate([each.table for _, each in tables], axis=1)
    table = torch.from_numpy(joined).to(logits.device)
    flat = logits.view(-1)
    found = flat[at]
    found = torch.where(found < 0, found * table[_REPETITION], found / table[_REPETITION])
    flat[at] = found - table[_FREQUENCY] - table[_PRESENCE] + table[_BIAS]
