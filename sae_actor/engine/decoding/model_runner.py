"""The model runner: one forward pass for many generations, or for one after the other.

`BatchedRunner` is for every model whose results it reproduces: `runner_for` compares them with the model's own forward
pass when it is loaded, and returns `SequentialRunner` if they differ.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import transformers
from torch import Tensor

from ...errors import InternalError, ModelLoadError
from .attention import CHUNKED, NAME, ScheduledTokens, StepLayout, current_states, laid_out, places
from .kv_cache import CacheSize, KVCache, KVCachePool, as_index
from .recurrent import (
    CACHE_ARGUMENTS,
    COPIES,
    KIND,
    RecurrentStates,
    layers_with_states,
    modules_with_states,
    replace_forwards,
    tensors_in,
)

logger = logging.getLogger(__name__)

SCALED_BY_LENGTH = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that depend on the longest sequence of a batch."""
SHAREABLE = frozenset({"full_attention", "sliding_attention", "global", CHUNKED, KIND})
"""Layer types whose rows see what `attention` lets them see, or whose state is known. Others hide keys by a rule of
their own, or carry something from token to token; a short trial does not show that."""
TOLERANCE = {torch.float32: 1e-3}
COARSE = 0.06
"""Largest difference of logits that counts as rounding, as a share of the largest logit; the second for half types."""


class ModelRunner(Protocol):
    """Runs chunks of generations through the model."""

    together: bool
    """Whether a step may have several pieces."""
    fork: Callable[[KVCache, KVCache], None] | None
    """Begins a text with what is kept of another; None: that is not possible."""

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache of all generations; changes with every step."""

    def bound(self, nbytes: int) -> None:
        """Take at most this many bytes if generations can do with them."""

    def open(self, *, alone: bool) -> KVCache:
        """Begin a text."""

    def arrange(self, pieces: Sequence[ScheduledTokens]) -> Any:
        """Make room, and return where the chunks' rows will be: `spans`, rows [start, stop) of each chunk, `rows` of
        all, and `logits`, rows [start, stop) of the logits of each: one for each of its tokens if it is scored, else
        one."""

    def logits(self, arranged: Any) -> Tensor:
        """Run the step: [rows, vocabulary], as `arrange` says. Nothing counts as cached until `keep`."""

    def keep(self, arranged: Any) -> None:
        """The step is good."""

    def release(self, kept: KVCache) -> None:
        """The text is over."""


class BatchedRunner:
    """All pieces in one forward pass, with the attention of `attention`, and linear attention as in `recurrent`."""

    together = True

    def __init__(self, network: Any) -> None:
        self._network = network
        self._store = KVCachePool()
        self._states = RecurrentStates(network.config) if layers_with_states(network.config) else None
        self.fork: Callable[[KVCache, KVCache], None] | None = self._store.fork if self._states is None else None
        self._limit: int | None = None
        self._open = 0

    @property
    def nbytes(self) -> int:
        return self._store.nbytes + (0 if self._states is None else self._states.nbytes)

    def bound(self, nbytes: int) -> None:
        self._limit = self._store.limit = nbytes

    def open(self, *, alone: bool) -> KVCache:
        self._open += 1
        return KVCache(alone=alone)

    def arrange(self, pieces: Sequence[ScheduledTokens]) -> StepLayout:
        if self._states is not None and self._limit is not None:
            self._store.limit = max(0, self._limit - self._states.of(self._open))
            self._store.trim()
        for piece in pieces:
            self._store.make_room(piece.kept, piece.kept.length + len(piece.ids), decoding=piece.decoding)
        layout = StepLayout(pieces, self._network.device)
        if self._states is not None:
            layout.states = self._states.step(layout.alone, layout.decoding, layout.rows)
        return layout

    def logits(self, arranged: StepLayout) -> Tensor:
        ends = as_index(arranged.wanted, self._network.device)
        with laid_out(arranged):
            out: Tensor = self._network(
                input_ids=arranged.ids, position_ids=arranged.positions, use_cache=False, logits_to_keep=ends
            ).logits
        return out[0]

    def keep(self, arranged: StepLayout) -> None:
        for piece in arranged.pieces:
            piece.kept.length += len(piece.ids)
        if self._states is not None and arranged.states is not None:
            self._states.keep(arranged.states)

    def release(self, kept: KVCache) -> None:
        self._open -= 1
        if self._states is not None:
            self._states.release(kept)
        self._store.release(kept)


class OwnForward:
    """The model's own forward pass over one generation, with transformers' own attention and cache."""

    def __init__(self, network: Any) -> None:
        """Raises `ModelLoadError` for a model whose forward pass takes no cache."""
        self._network = network
        taken = inspect.signature(network.forward).parameters
        names = [name for name in CACHE_ARGUMENTS if name in taken]
        if not names:
            raise ModelLoadError(f"the forward pass of {type(network).__name__} takes no cache of keys and values")
        self._argument = names[0]

    def cache(self) -> Any:
        """An empty one."""
        return transformers.DynamicCache(config=self._network.config)

    def logits(self, ids: Sequence[int], cache: Any = None, rows: int = 1) -> Tensor:
        """[rows, vocabulary] after the last of `ids`, which follow what `cache` holds; they are added to it."""
        fed = as_index(list(ids), self._network.device)[None]
        kept = {"use_cache": False} if cache is None else {"use_cache": True, self._argument: cache}
        logits: Tensor = self._network(input_ids=fed, logits_to_keep=rows, **kept).logits
        return logits[0, -rows:]


class _Own(KVCache):
    """The cache that transformers keeps for one generation."""

    def __init__(self, cache: Any) -> None:
        super().__init__(alone=True)
        self.cache = cache
        self.nbytes = 0


class _OnePiece(NamedTuple):
    piece: ScheduledTokens

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        return [(0, len(self.piece.ids))]

    @property
    def rows(self) -> int:
        return len(self.piece.ids)

    @property
    def logits(self) -> Sequence[tuple[int, int]]:
        return places([self.piece])


class SequentialRunner:
    """One piece a step, as the model itself runs it."""

    together = False
    fork: Callable[[KVCache, KVCache], None] | None = None

    def __init__(self, forward: OwnForward) -> None:
        self._forward = forward
        self.nbytes = 0

    def bound(self, nbytes: int) -> None:
        """Generations hold only what they need: it is enough to admit no more."""

    def open(self, *, alone: bool) -> KVCache:  # noqa: ARG002 — all are
        return _Own(self._forward.cache())

    def arrange(self, pieces: Sequence[ScheduledTokens]) -> _OnePiece:
        (piece,) = pieces
        return _OnePiece(piece)

    def logits(self, arranged: _OnePiece) -> Tensor:
        piece = arranged.piece
        return self._forward.logits(piece.ids, _own(piece.kept).cache, len(piece.wanted))

    def keep(self, arranged: _OnePiece) -> None:
        piece = arranged.piece
        piece.kept.length += len(piece.ids)
        self._count(_own(piece.kept))

    def release(self, kept: KVCache) -> None:
        own = _own(kept)
        own.cache, own.length = None, 0
        self._count(own)

    def _count(self, own: _Own) -> None:
        nbytes = 0 if own.cache is None else _nbytes(own.cache)
        self.nbytes += nbytes - own.nbytes
        own.nbytes = nbytes


def _own(kept: KVCache) -> _Own:
    if not isinstance(kept, _Own):
        raise InternalError("the generation was opened by another runner")
    return kept


def _nbytes(cache: Any) -> int:
    """Of the keys, values and states in a cache of transformers."""
    return sum(tensor.nbytes for tensors in parts_of_cache(cache) for tensor in tensors)


def size_of(cache: Any, positions: int, nbytes: Callable[[Tensor], int] = lambda tensor: tensor.nbytes) -> CacheSize:
    """What one generation takes, from the cache of one of that many positions."""
    growing, fixed = (sum(map(nbytes, tensors)) for tensors in parts_of_cache(cache))
    return CacheSize(growing // positions, COPIES * fixed)


def parts_of_cache(cache: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The keys and values in a cache of transformers, and the states that do not grow with the text."""
    growing, fixed = list[Tensor](), list[Tensor]()
    for layer in cache.layers:
        for name, value in vars(layer).items():
            (growing if name in ("keys", "values") else fixed).extend(tensors_in({name: value}))
    return growing, fixed


class Fitted(NamedTuple):
    """What `runner_for` found."""

    runner: ModelRunner
    size: CacheSize
    in_turn: str | None = None
    """Why generations run one after the other."""


def runner_for(network: Any, vocabulary: int) -> Fitted:
    """The runner of a model that is on its device. Runs it for some tokens; raises what that raises."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (14, 6))
    forward = OwnForward(network)
    cache = forward.cache()
    wanted = [forward.logits(first, cache)]
    size = size_of(cache, len(first))
    wanted.append(forward.logits(second))
    own = network.config._attn_implementation
    if not _replaced(network):
        return Fitted(SequentialRunner(forward), size, "its attention cannot be replaced")
    reason = _not_shared(network)
    if reason is None:
        undo = replace_forwards(network, current_states)
        found = _together(BatchedRunner(network), first, second)
        reference = torch.cat(wanted).float()
        worst = float((found.float() - reference).abs().max() / reference.abs().max())
        if worst <= TOLERANCE.get(network.dtype, COARSE):
            return Fitted(BatchedRunner(network), size)
        undo()
        reason = f"in a batch their logits differ by {worst:.1e} of the largest"
        logger.warning("this model's generations run one after the other: %s", reason)
    network.set_attn_implementation(own)
    return Fitted(SequentialRunner(forward), size, reason)


def _replaced(network: Any) -> bool:
    """Whether the model's attention is that of `attention` now. Some types only say that theirs cannot be replaced."""
    try:
        network.set_attn_implementation(NAME)
    except ValueError:
        return False
    return bool(network.config._attn_implementation == NAME)


def _together(runner: BatchedRunner, first: Sequence[int], second: Sequence[int]) -> Tensor:
    """[2, vocabulary] after both, run in one batch: prompts in chunks, then token by token."""
    kept = runner.open(alone=False), runner.open(alone=False)
    steps = [
        [ScheduledTokens(kept[0], first[:5], False), ScheduledTokens(kept[1], second[:4], False)],
        [ScheduledTokens(kept[0], first[5:12], False), ScheduledTokens(kept[1], second[4:5], True)],
        [ScheduledTokens(kept[0], first[12:13], True)],
        [ScheduledTokens(kept[0], first[13:], True), ScheduledTokens(kept[1], second[5:], True)],
    ]
    logits = torch.empty(0)
    for pieces in steps:
        arranged = runner.arrange(pieces)
        logits = runner.logits(arranged)
        runner.keep(arranged)
    return logits


def _not_shared(network: Any) -> str | None:
    """Why one step cannot be shared, whatever a trial says."""
    config = network.config
    scaled = sorted(set(_rope_types(config)) & SCALED_BY_LENGTH)
    if scaled:
        return f"its rotary embeddings depend on the length of the text ({scaled[0]})"
    kinds = {str(kind) for name in ("layer_types", "attention_layers") for kind in getattr(config, name, None) or ()}
    if others := sorted(kinds - SHAREABLE):
        return f"a step cannot be shared by layers of the type {others[0]}"
    if set(layers_with_states(config)) != set(modules_with_states(network)):
        return "the states of its linear attention cannot be kept for each text"
    if getattr(network, "is_loaded_in_8bit", False) is True:
        return "int8 of bitsandbytes looks for outliers in whole columns of a step, where texts would mix"
    return None


def _rope_types(config: Any) -> Iterator[str]:
    """Every kind of rotary embedding that the config names, also one for each type of layer."""
    settings = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while settings:
        each = settings.pop()
        if isinstance(each, Mapping):
            settings.extend(each.values())
            yield from (str(each[key]) for key in ("rope_type", "type") if key in each)
