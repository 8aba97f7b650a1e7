"""Linear attention in a step of many generations: the states that each carries from token to token.

Keys of others are never read; a state takes in all rows that pass its module. So that module alone runs several times
in a step: once for each chunk of a prompt, and once for all generations in decode, their states stacked. Its forward
pass is replaced, not the module: a hook on it sees all rows of the step, once, as elsewhere.

A step works on copies. They count once the step is good (`keep`), so that a step that failed can be tried again.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from ...errors import InternalError
from .kv_cache import KVCache

KIND = "linear_attention"
"""Type of the layers that keep a state."""
CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What a forward pass may call its cache: the name since transformers 5.24, and the one before."""
COPIES = 2
"""Of a generation's states while a step runs."""
STATE_ARGUMENTS = (*CACHE_ARGUMENTS, "cache_params")
"""The same, of a module that keeps a state."""


class _Stack:
    """States of some generations, a row each, in transformers' own objects: one for each layer."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.layers: dict[int, Any] = {}


class _Row(NamedTuple):
    """Where the states of one generation are."""

    stack: _Stack
    at: int


class _Unit:
    """Rows [start, stop) of a step that pass a module together: a chunk of a prompt, or one row of each generation."""

    def __init__(self, start: int, stop: int, members: Sequence[KVCache], before: Sequence[_Row], empty: Any) -> None:
        self.start, self.stop, self.members = start, stop, members
        self.after = _Stack(len(members))
        self._before = before
        """One for each member; none at the beginning of a text."""
        self._cache = copy.copy(empty)
        self._cache.layers = list(empty.layers)

    def run(self, layer: int, forward: Callable[[Tensor, Any], Tensor], rows: Tensor) -> Tensor:
        """[stop - start, width] → the same, and the states after it."""
        before = [(row.stack.layers[layer], row.at) for row in self._before]
        self._cache.layers[layer] = _stacked(before) if before else copy.deepcopy(self._cache.layers[layer])
        one_each = len(self.members) == self.stop - self.start
        out = forward(rows[:, None] if one_each else rows[None], self._cache)
        self.after.layers[layer] = self._cache.layers[layer]
        return out.reshape(len(rows), -1)


def _stacked(rows: Sequence[tuple[Any, int]]) -> Any:
    """A copy of one layer's states, from a row of each of these."""
    new = copy.copy(rows[0][0])
    vars(new).update(_joined([(vars(layer), at) for layer, at in rows]))
    return new


def _joined(rows: Sequence[tuple[Mapping[Any, Any], int]]) -> dict[Any, Any]:
    new = dict(rows[0][0])
    for name, value in new.items():
        if isinstance(value, Tensor) and value.dim():
            new[name] = torch.cat([values[name][at : at + 1] for values, at in rows])
        elif isinstance(value, Mapping):
            new[name] = _joined([(values[name], at) for values, at in rows])
    return new


class StepStates:
    """The states in one step."""

    def __init__(self, units: Sequence[_Unit]) -> None:
        self.units = units

    def run(self, layer: int, forward: Callable[[Tensor, Any], Tensor], rows: Tensor) -> Tensor:
        """[1, n, width] → [1, n, width]"""
        parts = [unit.run(layer, forward, rows[0, unit.start : unit.stop]) for unit in self.units]
        return torch.cat(parts)[None]


class RecurrentStates:
    """The states of all generations of a model with linear attention."""

    def __init__(self, config: Any) -> None:
        self._empty = transformers.DynamicCache(config=config)
        self._rows: dict[KVCache, _Row] = {}
        self._per_text = 0
        """Bytes; 0 until the first step is good."""

    @property
    def nbytes(self) -> int:
        """Of all states; a row counts as long as its stack is held."""
        return self._per_text * sum(stack.rows for stack in {row.stack for row in self._rows.values()})

    def of(self, texts: int) -> int:
        """Bytes of so many generations during a step: what they had, and what comes of it."""
        return COPIES * self._per_text * texts

    def step(self, chunks: Iterable[tuple[int, int, KVCache]], decoding: Sequence[KVCache], rows: int) -> StepStates:
        """`chunks` of prompts, rows [start, stop) each; the last of `rows` are one of each in `decoding`."""
        units = [self._unit(start, stop, [kept]) for start, stop, kept in chunks]
        if decoding:
            units.append(self._unit(rows - len(decoding), rows, decoding))
        return StepStates(units)

    def _unit(self, start: int, stop: int, members: Sequence[KVCache]) -> _Unit:
        before = [self._rows[kept] for kept in members if kept.length]
        if len(before) not in (0, len(members)):
            raise InternalError("a generation in decode has no states")
        return _Unit(start, stop, members, before, self._empty)

    def keep(self, step: StepStates) -> None:
        """The step is good."""
        for unit in step.units:
            if not self._per_text:
                held = (each for layer in unit.after.layers.values() for each in tensors_in(vars(layer)))
                self._per_text = sum(each.nbytes for each in held) // len(unit.members)
            self._rows.update((kept, _Row(unit.after, at)) for at, kept in enumerate(unit.members))

    def release(self, kept: KVCache) -> None:
        """The text is over."""
        self._rows.pop(kept, None)


def tensors_in(values: Mapping[Any, Any]) -> Iterator[Tensor]:
    """Those that a layer's cache holds."""
    for value in values.values():
        if isinstance(value, Tensor) and value.dim():  # the rest counts positions
            yield value
        elif isinstance(value, Mapping):
            yield from tensors_in(value)


def layers_with_states(config: Any) -> list[int]:
    return [at for at, kind in enumerate(getattr(config, "layer_types", None) or ()) if kind == KIND]


def modules_with_states(network: Any) -> dict[int, nn.Module]:
    """Layer → the module of its linear attention; a layer whose state is kept elsewhere is absent."""
    layers = layers_with_states(network.config)
    found = {}
    for module in network.modules() if layers else ():
        layer = getattr(module, "layer_idx", None)
        if layer in layers and _cache_argument(module) is not None:
            found[layer] = module  # the innermost
    return found


def _cache_argument(module: nn.Module) -> str | None:
    taken = inspect.signature(module.forward).parameters
    return next((name for name in STATE_ARGUMENTS if name in taken), None)


def replace_forwards(network: Any, current: Callable[[], StepStates]) -> Callable[[], None]:
    """Let the modules with states run in the step that `current` tells; returns what undoes it."""
    modules = tuple(modules_with_states(network).items())
    for layer, module in modules:
        # Through a weak reference: a module that held itself would outlive the model.
        module.forward = partial(_forward, weakref.ref(module), layer, str(_cache_argument(module)), current)

    def undo() -> None:
        for _, module in modules:
            del module.forward

    return undo


def _forward(
    held: weakref.ref[nn.Module],
    layer: int,
    argument: str,
    current: Callable[[], StepStates],
    hidden_states: Tensor,
    **given: Any,
) -> Tensor:
    module = held()
    if module is None:
        raise InternalError("the model is gone")
    own: Any = type(module).forward
    return current().run(layer, lambda rows, cache: own(module, rows, **{**given, argument: cache}), hidden_states)
