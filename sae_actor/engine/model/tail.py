"""What a model does after its last block: the final norm, the unembedding, and whatever its family has between them.

The model's own code computes it, so that no scale, cap or projection of a family is written down a second time: its
forward pass runs with blocks that return the given activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...errors import InternalError


class Tail:
    """Belongs to the device thread."""

    def __init__(self, network: Any, blocks: Sequence[nn.Module]) -> None:
        """The model runs at least once before `logits` is called: that shows what a block returns."""
        self._network = network
        self._blocks = blocks
        self._beside: list[int] = []
        """How many further things a block returns in a tuple; −1: a tensor alone. Empty: not seen yet."""
        _once(blocks[-1], self._beside)

    def logits(self, x: Tensor) -> Tensor:
        """[n, vocabulary] of rows [n, hidden] as the last block returns them, each as a text of one token."""
        if not self._beside:
            raise InternalError("the model has not run yet")
        stream, beside = x[:, None], self._beside[0]
        returned = stream if beside < 0 else (stream, *[None] * beside)
        ids = x.new_zeros((len(x), 1)).long()
        with _returning(self._blocks, returned):
            found: Tensor = self._network(input_ids=ids, use_cache=False).logits
        return found[:, -1]


def _once(block: nn.Module, beside: list[int]) -> None:
    """Note what the block returns when it runs next. Nothing here holds the model."""

    def see(_: nn.Module, __: Any, output: Any) -> None:
        beside.append(-1 if isinstance(output, Tensor) else len(output) - 1)
        handle.remove()

    handle = block.register_forward_hook(see)


@contextmanager
def _returning(blocks: Sequence[nn.Module], returned: Any) -> Iterator[None]:
    """Inside this block each of them returns that."""
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = lambda *_, **__: returned
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
