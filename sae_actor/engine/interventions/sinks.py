"""Attention sinks at a hook point: the first position, and outliers of the norm.

The norm is compared with the median of the prompt's first positions. The generation's record says how many:
`SINK_WINDOW`, or the whole prompt, as in logs from before there was a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InternalError

SINK_FACTOR = 5.0
"""A position is a sink if |x| is above this many times the median |x|."""


def measured(prompt: int, window: int | None) -> int:
    """Of how many first positions the median is; all of them are in the first piece of the prompt."""
    return prompt if window is None else min(prompt, window)


def norms_of(x: Tensor) -> Tensor:
    """|x| of each row, [n] float32."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return norms


def limit_of(norms: Tensor, prompt: int, window: int | None) -> Tensor:
    """The norm above which a position is a sink, from those of the first chunk of a prompt of that many tokens."""
    count = measured(prompt, window)
    if len(norms) < count:
        raise InternalError("the prompt's median norm needs more of its first positions at once")
    return SINK_FACTOR * norms[:count].median()
