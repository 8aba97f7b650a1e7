"""The KV cache, laid out so that a step of many generations reads it in place.

A generation in prefill has its own tensors. In decode it takes a slot among others of about its length, so that one
product serves all of them: slots of one size are one tensor, with those in use in front. A generation that outgrows its
slot moves to the next size. Sizes double, so that moving costs less than the tokens did.

Allocation is bounded: slots are added several at a time only while that leaves room, and are given back before anything
else is taken. A generation alone in its tensor is never copied as a whole: its tensor grows layer by layer, so it takes
no more than it needs at the end, and one layer. In a shared tensor it is in two places while it moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import OutOfMemoryError
from ..failures import explained

SMALLEST = 128
"""Positions of the smallest slots."""
GROWTH = 4
"""Slots added at a time if there is room."""


def capacity_for(positions: int) -> int:
    """Positions of the smallest slot that holds this many."""
    capacity = SMALLEST
    while capacity < positions:
        capacity *= 2
    return capacity


def longest_for(positions: int) -> int:
    """The most positions for a generation with room for this many; slots are not cut. 0: none fits."""
    capacity = SMALLEST
    while capacity * 2 <= positions:
        capacity *= 2
    return capacity if capacity <= positions else 0


class CacheSize(NamedTuple):
    """Bytes that one generation's cache takes: keys and values for each position, and states that do not grow, with the
    copy that a step works on."""

    per_position: int
    fixed: int = 0

    def of(self, positions: int) -> int:
        return self.fixed + self.per_position * positions

    def longest(self, nbytes: int) -> int:
        """The most positions of a generation that has this many bytes."""
        return longest_for(max(0, nbytes - self.fixed) // max(1, self.per_position))


class KVSlots:
    """Room for some sequences of up to `capacity` positions. Tensors come with the first write to a layer.

    Values after a sequence's end are finite: they are masked, but 0 · NaN would not be 0. Slots begin as zeros, and a
    sequence copied into one (`copy`) overwrites all of the previous one.
    """

    def __init__(self, capacity: int, count: int = 1) -> None:
        self.capacity = capacity
        self.count = count
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys [count, heads, capacity, d_key] and values [count, heads, capacity, d_value]; never smaller than that,
        and larger after a `reshape` that failed."""
        self.nbytes = 0

    def write(self, layer: int, slots: Tensor | slice, positions: Tensor | slice, keys: Tensor, values: Tensor) -> None:
        """Store keys [heads, …, d_key] of one sequence with slices, or [n, heads, d_key] of n with tensors."""
        heads = keys.shape[-3] if isinstance(slots, slice) else keys.shape[-2]
        there = self._layer(layer, heads, keys, values)
        there[0][slots, :, positions] = keys
        there[1][slots, :, positions] = values

    def _layer(self, layer: int, heads: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's tensors; new ones are like `keys` and `values`."""
        if layer not in self.layers:
            new = [like.new_zeros(self.count, heads, self.capacity, like.shape[-1]) for like in (keys, values)]
            self._put(layer, new)
        return self.layers[layer]

    def _put(self, layer: int, both: Sequence[Tensor]) -> None:
        before = self.layers.get(layer, ())
        keys, values = both
        self.layers[layer] = keys, values
        self.nbytes += sum(each.nbytes for each in both) - sum(each.nbytes for each in before)

    def reshape(self, count: int, capacity: int) -> None:
        """More or fewer slots, or longer ones; those that stay keep their contents. Layer by layer, so that only one is
        there twice. If memory is full, everything stays as it was, except slots to be removed."""
        kept = min(count, self.count)
        for layer, both in tuple(self.layers.items()):
            new = []
            for old in both:
                fresh = old.new_zeros(count, old.shape[1], capacity, old.shape[3])
                fresh[:kept, :, : self.capacity] = old[:kept, :, : self.capacity]
                new.append(fresh)
            self._put(layer, new)
            self.count = kept  # and no more, should the next layer fail
        self.count, self.capacity = count, capacity

    @property
    def per_position(self) -> int:
        """Bytes of one position in one slot; 0 before the first write."""
        return sum(each.shape[1] * each.shape[3] * each.itemsize for both in self.layers.values() for each in both)

    def copy(self, slot: int, source: KVSlots, at: int, length: int) -> None:
        """Copy the first `length` positions of another slot; zeros after them."""
        for layer, both in source.layers.items():
            mine = self._layer(layer, both[0].shape[1], *both)
            for to, from_ in zip(mine, both, strict=True):
                to[slot, :, :length] = from_[at, :, :length]
                to[slot, :, length:] = 0


class KVCache:
    """One generation's keys and values: where they are, and how many positions are valid."""

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        """It never shares a tensor, so that other generations cannot change how it is computed."""
        self.length = 0
        self.slots = KVSlots(0)
        self.slot = 0
        self.shared = False


class KVCachePool:
    """All that is kept, by size."""

    def __init__(self) -> None:
        self.limit: int | None = None
        """Above this many bytes there are no spare slots."""
        self._sizes: dict[int, KVSlots] = {}
        self._held: dict[int, list[KVCache]] = {}
        """Size → who has slot 0, 1, …"""
        self._own: set[KVCache] = set()
        """Those that have tensors of their own."""
        self._per_position = 0
        """Bytes; 0 until the first generation has some."""

    def make_room(self, kept: KVCache, positions: int, *, decoding: bool) -> None:
        """Room for positions up to `positions`; in a shared tensor during decode (`decoding`)."""
        share = kept.shared or (decoding and not kept.alone)
        if positions <= kept.slots.capacity and kept.shared == share:
            return
        capacity = capacity_for(positions)
        self._per_position = kept.slots.per_position or self._per_position
        if share and (capacity in self._sizes or (kept.shared and len(self._held[kept.slots.capacity]) > 1)):
            self._move(kept, capacity)
            return
        # It is alone, here and there.
        self._afford((capacity - kept.slots.capacity) * self._per_position)
        before = kept.slots.capacity
        kept.slots.reshape(1, capacity)
        if kept.shared:
            del self._sizes[before], self._held[before]
        if share:
            self._own.discard(kept)
            self._sizes[capacity], self._held[capacity] = kept.slots, [kept]
            kept.slot, kept.shared = 0, True
        else:
            self._own.add(kept)

    def fork(self, kept: KVCache, into: KVCache) -> None:
        """Begin a text, which has nothing yet, with the keys and values of another."""
        self.make_room(into, kept.length, decoding=False)
        into.slots.copy(into.slot, kept.slots, kept.slot, kept.length)
        into.length = kept.length

    def _move(self, kept: KVCache, capacity: int) -> None:
        """Into a slot of a shared tensor."""
        slots, held = self._sizes.get(capacity), self._held.get(capacity)
        if slots is None or held is None:
            slots, held = KVSlots(capacity, 0), []
        if len(held) == slots.count:
            size = capacity * self._per_position
            spare = self._afford(size) // size if size else GROWTH
            slots.reshape(slots.count + max(1, min(GROWTH, spare)), capacity)
        slot = len(held)
        slots.copy(slot, kept.slots, kept.slot, kept.length)
        held.append(kept)
        self._sizes[capacity], self._held[capacity] = slots, held
        source, at, was_shared = kept.slots, kept.slot, kept.shared
        kept.slots, kept.slot, kept.shared = slots, slot, True
        if was_shared:
            self._leave(source, at)
        else:
            self._own.discard(kept)

    def release(self, kept: KVCache) -> None:
        """The text is over."""
        slots, slot, shared = kept.slots, kept.slot, kept.shared
        self._own.discard(kept)
        if shared:
            self._leave(slots, slot)
        kept.slots, kept.slot, kept.shared, kept.length = KVSlots(0), 0, False, 0

    def _leave(self, slots: KVSlots, slot: int) -> None:
        """Free a slot: the last one moves into it, so that those in use stay in front."""
        held = self._held[slots.capacity]
        end = len(held) - 1
        if slot != end:
            last = held[end]
            slots.copy(slot, slots, end, last.length)
            held[slot], last.slot = last, slot
        held.pop()
        if not held:
            del self._sizes[slots.capacity], self._held[slots.capacity]
        elif slots.count - len(held) > 2 * GROWTH:
            _shrink(slots, len(held) + GROWTH)

    def trim(self) -> None:
        """Give spare slots back where there is more than the limit."""
        self._afford(0)

    def _afford(self, more: int) -> int:
        """Bytes within the limit that may be taken, `more` of which are needed: for them spare slots are given back."""
        if self.limit is None:
            return GROWTH * more
        if self.limit - self.nbytes < more:
            for capacity, slots in self._sizes.items():
                count = len(self._held[capacity])
                if slots.nbytes > count * capacity * self._per_position:
                    _shrink(slots, count)
        return self.limit - self.nbytes

    @property
    def nbytes(self) -> int:
        """Of all tensors, those counted that come with the next step."""
        own = (max(each.slots.nbytes, each.slots.capacity * self._per_position) for each in self._own)
        return sum(slots.nbytes for slots in self._sizes.values()) + sum(own)


def _shrink(slots: KVSlots, count: int) -> None:
    """Give spare slots back; they stay where the memory is too full to copy the others."""
    try:
        slots.reshape(count, slots.capacity)
    except Exception as error:
        if not isinstance(explained(error, "giving memory back"), OutOfMemoryError):
            raise


def rows_in_front(kept: Sequence[KVCache]) -> bool:
    """Whether these generations of one tensor are exactly those in front of it, in order."""
    return all(each.slot == at for at, each in enumerate(kept))


def as_index(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
