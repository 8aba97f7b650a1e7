"""Keys and values of the texts that run, kept so that a step of many texts reads them where they are.

A text whose prompt is being read has tensors of its own. Once it makes tokens it takes a slot among others of about
its length, so that one product serves all of them: slots of one size are one tensor, those in use stand in front.
A text that outgrows its slot moves to the next size, and sizes double, so that moving costs less than the tokens did.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST = 128
"""Positions of the smallest slots."""
GROWTH = 4
"""Slots that are added at a time."""


def capacity_for(positions: int) -> int:
    """Positions of the slots in which so many fit."""
    capacity = SMALLEST
    while capacity < positions:
        capacity *= 2
    return capacity


def longest_for(positions: int) -> int:
    """The most positions that a text may have where there is room for so many: slots are not cut. 0: none fits."""
    capacity = SMALLEST
    while capacity * 2 <= positions:
        capacity *= 2
    return capacity if capacity <= positions else 0


class Slots:
    """Room for some sequences of up to `capacity` positions. Tensors come with the first write to a layer.

    Rooms begin as zeros: what lies behind a sequence's end is masked, and 0 · NaN would not be 0.
    """

    def __init__(self, capacity: int, count: int = 1) -> None:
        self.capacity = capacity
        self.count = count
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys [count, heads, capacity, d_key] and values [count, heads, capacity, d_value]."""

    def write(self, layer: int, slots: Tensor | slice, positions: Tensor | slice, keys: Tensor, values: Tensor) -> None:
        """Store keys [heads, …, d_key] of one sequence with slices, or [n, heads, d_key] of n with tensors."""
        there = self.layers.get(layer)
        if there is None:
            heads = keys.shape[-3] if isinstance(slots, slice) else keys.shape[-2]
            there = self.layers[layer] = (self._room(heads, keys), self._room(heads, values))
        there[0][slots, :, positions] = keys
        there[1][slots, :, positions] = values

    def _room(self, heads: int, like: Tensor) -> Tensor:
        return like.new_zeros(self.count, heads, self.capacity, like.shape[-1])

    def resize(self, count: int) -> None:
        """More or fewer slots; those that stay are kept."""
        kept = min(count, self.count)
        for layer, both in self.layers.items():
            new = [each.new_zeros(count, *each.shape[1:]) for each in both]
            for fresh, old in zip(new, both, strict=True):
                fresh[:kept] = old[:kept]
            self.layers[layer] = (new[0], new[1])
        self.count = count

    def copy(self, slot: int, source: Slots, at: int, length: int) -> None:
        """Take over the first `length` positions of another's slot."""
        for layer, (keys, values) in source.layers.items():
            if layer not in self.layers:
                self.layers[layer] = (self._room(keys.shape[1], keys), self._room(values.shape[1], values))
            mine = self.layers[layer]
            mine[0][slot, :, :length] = keys[at, :, :length]
            mine[1][slot, :, :length] = values[at, :, :length]

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())


class Kept:
    """One text's keys and values: where they are, and how many positions count."""

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        """It never shares a tensor, so that nothing that runs beside it changes how it is computed."""
        self.length = 0
        self.slots = Slots(0)
        self.slot = 0
        self.shared = False


class Store:
    """All that is kept, by size."""

    def __init__(self) -> None:
        self._sizes: dict[int, Slots] = {}
        self._held: dict[int, list[Kept]] = {}
        """Size → who has slot 0, 1, …"""

    def make_room(self, kept: Kept, positions: int, *, deciding: bool) -> None:
        """Room for positions up to `positions`; in a shared tensor once the text makes tokens (`deciding`)."""
        share = deciding and not kept.alone
        if positions <= kept.slots.capacity and kept.shared == share:
            return
        capacity = capacity_for(positions)
        source, at, was_shared = kept.slots, kept.slot, kept.shared
        if share:
            slots = self._sizes.setdefault(capacity, Slots(capacity, 0))
            held = self._held.setdefault(capacity, [])
            if len(held) == slots.count:
                slots.resize(slots.count + GROWTH)
            slot = len(held)
        else:
            slots, slot = Slots(capacity), 0
        slots.copy(slot, source, at, kept.length)
        kept.slots, kept.slot, kept.shared = slots, slot, share
        if share:
            self._held[capacity].append(kept)
        if was_shared:
            self._leave(source, at)

    def release(self, kept: Kept) -> None:
        """The text is over."""
        if kept.shared:
            self._leave(kept.slots, kept.slot)
        kept.slots, kept.slot, kept.shared, kept.length = Slots(0), 0, False, 0

    def _leave(self, slots: Slots, slot: int) -> None:
        """Free a slot: the last one moves into it, so that those in use stay in front."""
        held = self._held[slots.capacity]
        last = held.pop()
        if slot < len(held):
            slots.copy(slot, slots, len(held), last.length)
            last.slot = slot
            held[slot] = last
        if not held:
            del self._sizes[slots.capacity], self._held[slots.capacity]
        elif slots.count - len(held) > 2 * GROWTH:
            slots.resize(len(held) + GROWTH)

    @property
    def nbytes(self) -> int:
        """Of the shared tensors."""
        return sum(slots.nbytes for slots in self._sizes.values())


def rows_in_front(kept: Sequence[Kept]) -> bool:
    """Whether texts of one tensor are all that is in front of it, in order."""
    return all(each.slot == at for at, each in enumerate(kept))


def as_index(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
