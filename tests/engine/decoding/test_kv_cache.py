"""Keys and values stay what was written, wherever they are moved, and take no more than they may."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from sae_actor.engine.decoding import kv_cache
from sae_actor.engine.decoding.kv_cache import KVCache, KVCachePool, KVSlots, as_index, capacity_for

LAYERS, HEADS, WIDTH = 3, 2, 4
PER_POSITION = LAYERS * HEADS * 2 * WIDTH * 4
CPU = torch.device("cpu")


@dataclass
class Text:
    """What one text wrote, beside where it is kept."""

    kept: KVCache
    prompt: int
    length: int
    keys: list[Tensor] = field(default_factory=list)
    """Of each layer [HEADS, positions, WIDTH]; the values are their negatives."""

    @property
    def bytes_at_most(self) -> int:
        return PER_POSITION * capacity_for(self.length)


class Texts:
    """Texts that run as the batch would have them run."""

    def __init__(self, limit: int) -> None:
        self.store = KVCachePool()
        self.store.limit = limit
        self.running: list[Text] = []

    def admit(self, text: Text) -> bool:
        sizes = [each.bytes_at_most for each in (*self.running, text)]
        limit = self.store.limit
        assert limit is not None
        if len(sizes) == 1 or sum(sizes) + max(sizes) <= limit:
            self.running.append(text)
            return True
        return False

    def step(self, text: Text, tokens: int, value: float | None = None) -> None:
        """Tokens of a prompt, or one that was made: make room, write each layer, count them."""
        decoding = text.kept.length >= text.prompt
        kept = text.kept
        self.store.make_room(kept, kept.length + tokens, decoding=decoding)
        for layer in range(LAYERS):
            new = torch.randn(HEADS, tokens, WIDTH) if value is None else torch.full((HEADS, tokens, WIDTH), value)
            if kept.shared:
                at, position = as_index([kept.slot], CPU), as_index([kept.length], CPU)
                kept.slots.write(layer, at, position, new.transpose(0, 1), -new.transpose(0, 1))
            else:
                kept.slots.write(layer, slice(0, 1), slice(kept.length, kept.length + tokens), new, -new)
            if len(text.keys) == layer:  # its first
                text.keys.append(new)
            else:
                text.keys[layer] = torch.cat((text.keys[layer], new), dim=1)
        kept.length += tokens

    def end(self, text: Text) -> None:
        self.running.remove(text)
        self.store.release(text.kept)

    def check(self) -> None:
        """Everyone's keys and values are theirs; what is told is allocated, and within the limit."""
        tensors: dict[int, Tensor] = {}
        for text in self.running:
            slots, slot, length = text.kept.slots, text.kept.slot, text.kept.length
            for layer, (keys, values) in slots.layers.items():
                tensors.update({id(keys): keys, id(values): values})
                assert torch.equal(keys[slot, :, :length], text.keys[layer])
                assert torch.equal(values[slot, :, :length], -text.keys[layer])
                assert bool(torch.isfinite(keys[slot]).all())
        assert sum(each.nbytes for each in tensors.values()) == self.store.nbytes
        assert self.store.limit is not None
        assert self.store.nbytes <= self.store.limit
        places = [(id(text.kept.slots), text.kept.slot) for text in self.running]
        assert len(set(places)) == len(places)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SMALLEST", 8)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("positions", [64, 200, 1000, 100_000])
def test_any_texts_in_any_order(positions: int) -> None:
    """Room for so many positions, from one long text to more than there is."""
    most = 0
    for seed in range(4):
        chance = random.Random(seed)
        texts = Texts(positions * PER_POSITION)
        for _ in range(200):
            if chance.random() < 0.15:
                length = chance.choice((7, 8, 9, 20, 33, 64))
                texts.admit(Text(KVCache(alone=chance.random() < 0.1), chance.randrange(1, length), length))
            if texts.running:
                text = chance.choice(texts.running)
                left = text.length - text.kept.length
                if left == 0 or chance.random() < 0.02:
                    texts.end(text)
                else:
                    texts.step(text, min(chance.randrange(1, 9), max(1, text.prompt - text.kept.length)))
            texts.check()
            most = max(most, len(texts.running))
        for text in tuple(texts.running):
            texts.end(text)
        assert texts.store.nbytes == 0
    assert most > 1


@pytest.mark.usefixtures("small")
def test_one_text_takes_what_it_needs() -> None:
    """As long as all room there is; and with room enough, a second one finds spare slots ready."""
    texts = Texts(64 * PER_POSITION)
    text = Text(KVCache(alone=False), 30, 64)
    texts.admit(text)
    texts.step(text, 30)
    while text.kept.length < 64:
        texts.step(text, 1)
        texts.check()
        assert texts.store.nbytes == capacity_for(text.kept.length) * PER_POSITION
    texts.store.limit = 1000 * PER_POSITION
    for _ in range(2):
        another = Text(KVCache(alone=False), 60, 64)
        assert texts.admit(another)
        texts.step(another, 60)
        texts.step(another, 1)
        assert texts.store.nbytes == (1 + kv_cache.GROWTH) * 64 * PER_POSITION


@pytest.mark.usefixtures("small")
def test_nothing_of_the_one_before_is_left_in_a_slot() -> None:
    texts = Texts(100_000 * PER_POSITION)
    for last in (2, 0, 1):
        three = [Text(KVCache(alone=False), 3, 8) for _ in range(3)]
        for text in three:
            texts.admit(text)
            texts.step(text, 3)
            texts.step(text, 1)
        texts.step(three[last], 1, torch.nan)
        texts.end(three[last])
        texts.check()
        another = Text(KVCache(alone=False), 2, 8)
        texts.admit(another)
        texts.step(another, 2)
        texts.step(another, 1)
        texts.check()
        for text in tuple(texts.running):
            texts.end(text)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_memory_that_is_full_in_the_midst_of_a_move(monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """What is there stays as it is, and can be moved when there is memory again."""
    texts = Texts(100_000 * PER_POSITION)
    for _ in range(kv_cache.GROWTH + 1):
        text = Text(KVCache(alone=False), 5, 64)
        texts.admit(text)
        texts.step(text, 5)
        texts.step(text, 1)
    real, calls = KVSlots._put, [0]

    def full(self: KVSlots, at: int, both: list[Tensor]) -> None:
        calls[0] += 1
        if calls[0] > layer:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, at, both)

    joining = Text(KVCache(alone=False), 6, 64)
    texts.admit(joining)
    texts.step(joining, 6)
    growing = texts.running[0]
    while growing.kept.length < 8:
        texts.step(growing, 1)
    for text in (joining, growing):
        if text is joining:
            while len(texts.store._held[8]) < texts.store._sizes[8].count:  # no slot is free
                filling = Text(KVCache(alone=False), 1, 64)
                texts.admit(filling)
                texts.step(filling, 1)
                texts.step(filling, 1)
        with monkeypatch.context() as patch:
            patch.setattr(KVSlots, "_put", full)
            calls[0] = 0
            with pytest.raises(torch.OutOfMemoryError):
                texts.store.make_room(text.kept, text.kept.length + 1, decoding=True)
        texts.check()
        texts.step(text, 1)
        texts.check()


@pytest.mark.usefixtures("small")
def test_slots_that_cannot_be_given_back_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(100_000 * PER_POSITION)
    for _ in range(3 * kv_cache.GROWTH):
        text = Text(KVCache(alone=False), 5, 64)
        texts.admit(text)
        texts.step(text, 5)
        texts.step(text, 1)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(KVSlots, "_put", full)
        while len(texts.running) > 2:
            texts.end(texts.running[0])
    texts.check()
    assert texts.store.nbytes == (1 + 3 * kv_cache.GROWTH) * 8 * PER_POSITION
    texts.end(texts.running[0])
    texts.check()
    assert texts.store.nbytes == (1 + kv_cache.GROWTH) * 8 * PER_POSITION
