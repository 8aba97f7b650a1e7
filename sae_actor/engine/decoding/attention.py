"""Attention of one step with several generations, registered with transformers under `NAME`.

The rows of a step follow one another, [1, n]. Chunks of prompts come first, each with its own tensors; then the
generations in decode, one row each, grouped by the tensor that holds their keys. Nothing is copied for that, and no row
can see another generation's keys.

softmax(cap(scale · q kᵀ) + mask) v, over the keys up to the row's own position, from `sliding_window` before it where
the layer has one, or from the beginning of its chunk (Llama 4); cap(w) = softcap · tanh(w / softcap) (Gemma 2); a sink
adds a column that takes weight and gives nothing (gpt-oss).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from ...errors import InternalError
from .kv_cache import KVCache, KVSlots, as_index, rows_in_front
from .recurrent import StepStates

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "sae_actor"
CHUNKED = "chunked_attention"
"""Type of the layers whose rows look at their own chunk alone."""
QUERIES = 256
"""Prompt rows computed at a time when torch's own kernel cannot be used."""


class ScheduledTokens(NamedTuple):
    """Tokens of one generation in a step: those of `ids`, after the cached ones."""

    kept: KVCache
    ids: Sequence[int]
    decoding: bool
    """One generated token."""
    scored: bool = False
    """The logits after each of its tokens are wanted, not after the last one alone."""

    @property
    def wanted(self) -> range:
        """The tokens after which logits are wanted, counted from the piece's first."""
        return range(0 if self.scored else len(self.ids) - 1, len(self.ids))


def places(pieces: Sequence[ScheduledTokens]) -> list[tuple[int, int]]:
    """Rows [start, stop) of a step's logits of each piece, if they follow one another."""
    stops = list(accumulate(len(piece.wanted) for piece in pieces))
    return list(zip([0, *stops], stops, strict=False))


class Reach(NamedTuple):
    """Which keys a row looks at, of those up to its own."""

    window: int | None = None
    """So many last ones."""
    chunk: int | None = None
    """Those of its own chunk; the text is cut into chunks of this many positions."""

    def all_of(self, positions: int) -> bool:
        """Whether rows of a text that long look at all of them."""
        return all(limit is None or positions <= limit for limit in self)

    def hidden(self, row: Tensor, key: Tensor) -> Tensor:
        """bool: where the row at a position does not look at the key at another."""
        hidden = key > row
        if self.window is not None:
            hidden |= key <= row - self.window
        if self.chunk is not None:
            hidden |= key // self.chunk != row // self.chunk
        return hidden


class Alone(NamedTuple):
    """A piece with tensors of its own: rows [start, stop), at positions from `kept.length`."""

    start: int
    stop: int
    kept: KVCache


@dataclass(eq=False)
class DecodeGroup:
    """Generations in decode, rows [start, stop), whose keys are in one tensor."""

    start: int
    stop: int
    slots: KVSlots
    at: Tensor
    """[n] slots."""
    positions: Tensor
    """[n]"""
    longest: int
    """Keys of the longest, its new one counted."""
    in_front: bool
    masks: dict[Reach, Tensor] = field(default_factory=dict)

    def mask(self, reach: Reach, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, longest]: 0 where the row attends, −inf elsewhere."""
        mask = self.masks.get(reach)
        if mask is None:
            hidden = reach.hidden(self.positions[:, None], torch.arange(self.longest, device=self.positions.device))
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)
            mask = self.masks[reach] = mask[:, None, None]
        return mask


class StepLayout:
    """Where the chunks of a step are among its rows."""

    def __init__(self, pieces: Sequence[ScheduledTokens], device: torch.device) -> None:
        """Every piece has its room already."""
        self.pieces = pieces
        self.alone: list[Alone] = []
        self.groups: list[DecodeGroup] = []
        self.decoding: list[KVCache] = []
        """Of the last rows, one each: those in groups."""
        self.states: StepStates | None = None
        """Of a model with linear attention."""
        spans: dict[int, tuple[int, int]] = {}
        ids: list[int] = []
        positions: list[int] = []

        def place(at: int) -> None:
            piece = pieces[at]
            spans[at] = (len(ids), len(ids) + len(piece.ids))
            ids.extend(piece.ids)
            positions.extend(range(piece.kept.length, piece.kept.length + len(piece.ids)))

        shared: dict[KVSlots, list[int]] = {}
        for at, piece in enumerate(pieces):
            if piece.kept.shared:
                shared.setdefault(piece.kept.slots, []).append(at)
            else:
                place(at)
                self.alone.append(Alone(*spans[at], piece.kept))
        for slots, members in shared.items():
            members.sort(key=lambda at: pieces[at].kept.slot)
            start = len(ids)
            for at in members:
                place(at)
            kept = [pieces[at].kept for at in members]
            self.decoding.extend(kept)
            self.groups.append(
                DecodeGroup(
                    start=start,
                    stop=len(ids),
                    slots=slots,
                    at=as_index([each.slot for each in kept], device),
                    positions=as_index([each.length for each in kept], device),
                    longest=max(each.length for each in kept) + 1,
                    in_front=rows_in_front(kept),
                )
            )
        self.spans = [spans[at] for at in range(len(pieces))]
        """Rows [start, stop) of each piece."""
        self.logits = places(pieces)
        """Rows of the logits of each piece."""
        self.wanted = [spans[at][0] + row for at, piece in enumerate(pieces) for row in piece.wanted]
        """Rows after which logits are wanted, piece by piece."""
        self.rows = len(ids)
        self.ids = as_index(ids, device)[None]
        self.positions = as_index(positions, device)[None]


class _Current(threading.local):
    layout: StepLayout | None = None


_current = _Current()


@contextmanager
def laid_out(layout: StepLayout) -> Iterator[None]:
    """The forward pass inside of this block, on this thread, is a step of that layout."""
    _current.layout = layout
    try:
        yield
    finally:
        _current.layout = None


def current_states() -> StepStates:
    """Of the step that runs on this thread."""
    layout = _current.layout
    if layout is None or layout.states is None:
        raise InternalError("the model was run outside of a step")
    return layout.states


class Kind(NamedTuple):
    """What a layer's attention is like."""

    scale: float
    reach: Reach
    softcap: float | None
    sinks: Tensor | None
    """[heads]"""

    @property
    def plain(self) -> bool:
        """torch's own kernels compute it."""
        return self.softcap is None and self.sinks is None


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,  # what a row sees follows from the layout
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls with query [1, heads, rows, d], key and value [1, key heads, rows, d]; gives
    [1, rows, heads, d]."""
    layout = _current.layout
    if layout is None:
        raise InternalError("the model was run outside of a step")
    layer: int = module.layer_idx
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    kind = Kind(scale, Reach(sliding_window, _chunk(module)), softcap, s_aux)
    query = _tempered(module, query, layout)
    out = query.new_empty(layout.rows, query.shape[1], value.shape[-1])
    q, k, v = query[0], key[0], value[0]  # [heads, rows, d]
    for start, stop, kept in layout.alone:
        rows, end = slice(start, stop), kept.length + stop - start
        kept.slots.write(layer, slice(0, 1), slice(kept.length, end), k[:, rows], v[:, rows])
        keys, values = (each[:, :, :end] for each in kept.slots.layers[layer])
        out[rows] = _prompt(q[None, :, rows], keys, values, kind)[0].transpose(0, 1)
    for group in layout.groups:
        rows = slice(group.start, group.stop)
        group.slots.write(layer, group.at, group.positions, k[:, rows].transpose(0, 1), v[:, rows].transpose(0, 1))
        n = group.stop - group.start
        keys, values = (
            (each[:n] if group.in_front else each[group.at])[:, :, : group.longest]
            for each in group.slots.layers[layer]
        )
        out[rows] = _tokens(q[:, rows].transpose(0, 1), keys, values, group, kind)
    return out[None], None


def _chunk(module: Any) -> int | None:
    """Positions of a chunk, in layers whose rows look at their own chunk alone."""
    config: Any = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds or kinds[module.layer_idx] != CHUNKED:
        return None
    size: int = config.attention_chunk_size
    return size


def _tempered(module: Any, query: Tensor, layout: StepLayout) -> Tensor:
    """Llama 4 scales queries of layers without rotary embedding by their position, as which it took the place among the
    rows of the step."""
    if not getattr(module, "attn_temperature_tuning", False) or module.use_rope:
        return query

    def scale(positions: Tensor) -> Any:
        return torch.log1p(torch.floor((positions.float() + 1.0) / module.floor_scale)) * module.attn_scale + 1.0

    taken = torch.arange(layout.rows, device=query.device)
    tempered: Tensor = query * (scale(layout.positions[0]) / scale(taken))[:, None]
    return tempered.to(query.dtype)


def _tokens(q: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup, kind: Kind) -> Tensor:
    """One row of each generation: q [n, heads, d], keys [n, key heads, longest, d]; → [n, heads, d]."""
    n, heads, width = q.shape
    # Queries that share a key head take the place of a longer query.
    queries = q.reshape(n, keys.shape[1], -1, width)  # [n, key heads, heads / key heads, d]
    mask = group.mask(kind.reach, q.dtype)
    if q.device.type == "cuda" and kind.plain:
        weighed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=kind.scale)
    else:
        sinks = None if kind.sinks is None else kind.sinks.view(1, keys.shape[1], -1, 1)
        weighed = _weigh(queries, (keys, values), mask, kind, sinks)
    return weighed.reshape(n, heads, -1)


def _prompt(q: Tensor, keys: Tensor, values: Tensor, kind: Kind) -> Tensor:
    """Rows of one generation: q [1, heads, m, d] at the last m positions of keys [1, key heads, l, d]; → [1, heads, m,
    d]."""
    m, total = q.shape[2], keys.shape[2]
    past = total - m
    shared = q.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
    if kind.plain:
        if total == 1 or (past == 0 and kind.reach.all_of(total)):
            causal = total > 1
            return functional.scaled_dot_product_attention(q, keys, values, is_causal=causal, scale=kind.scale)
        seen = ~_hidden(past, m, total, kind.reach, q.device)
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=kind.scale)
    sinks = None if kind.sinks is None else kind.sinks.view(1, -1, 1, 1)
    parts = []
    for start in range(0, m, QUERIES):
        queries = q[:, :, start : start + QUERIES]
        hidden = _hidden(past + start, queries.shape[2], total, kind.reach, q.device)
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -math.inf)
        parts.append(_weigh(queries, (keys, values), mask, kind, sinks))
    return torch.cat(parts, dim=2)


def _hidden(first: int, m: int, total: int, reach: Reach, device: torch.device) -> Tensor:
    """[m, total] bool: keys that the row at position first + i does not look at."""
    return reach.hidden(torch.arange(first, first + m, device=device)[:, None], torch.arange(total, device=device))


def _weigh(q: Tensor, kept: tuple[Tensor, Tensor], mask: Tensor, kind: Kind, sinks: Tensor | None) -> Tensor:
    """q [b, heads, m, d], keys and values [b, heads, l, d]; mask and sinks broadcast to [b, heads, m, l or 1]."""
    keys, values = kept
    weights = torch.matmul(q * kind.scale, keys.transpose(2, 3))  # [b, heads, m, l]
    if kind.softcap is not None:
        weights = torch.tanh(weights / kind.softcap) * kind.softcap
    weights = weights + mask
    if sinks is None:
        weights = weights.softmax(dim=-1, dtype=torch.float32)
    else:
        column = sinks.to(weights.dtype).expand(*weights.shape[:-1], 1)
        weights = torch.cat((weights, column), dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
    return torch.matmul(weights.to(values.dtype), values)


AttentionInterface.register(NAME, attention)
