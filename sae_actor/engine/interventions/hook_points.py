"""The hook points of a loaded model: the places that `families` names, found in its modules.

A hook reads an activation and may replace it; widths are those of the modules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from ...domain.refs import Before, HookKind, HookPoint
from ...errors import LayerOutOfRangeError, ModelLoadError, SAEIncompatibleError
from ...models.families import FAMILIES, Family, Where

HOOK_KINDS: tuple[HookKind, ...] = get_args(HookKind)
READ_BY_A_MATRIX: tuple[HookKind, ...] = ("attn_z", "mlp_act")
FUSED = "the matrix that reads it is fused with others, or quantised so that it does not show how wide it is"

Edit = Callable[[Tensor], Tensor | None]
"""Gets an activation [..., width]; returns its replacement (same shape and type), or None to leave it."""


@dataclass(frozen=True, eq=False)
class Gain:
    """What a norm does last: y = gain · x + bias."""

    gain: Tensor
    bias: Tensor | None = None
    """[width] each, float32 or wider, on the device of the model."""

    def off(self, y: Tensor) -> Tensor:
        """x [..., width], in the type of the gain."""
        wide = y.to(self.gain.dtype)
        return (wide if self.bias is None else wide - self.bias) / self.gain

    def on(self, y: Tensor, x: Tensor, new: Tensor, touched: Tensor) -> Tensor:
        """y with the difference of `new` to x = `off`(y) in it, at the rows that are `touched` [n]; others bit for
        bit y [n, width]."""
        moved = y.to(self.gain.dtype) + (new.to(self.gain.dtype) - x) * self.gain
        return torch.where(touched[:, None], moved.to(y.dtype), y)


@dataclass(frozen=True)
class Hook:
    """A resolved hook point: the module, and how its activation is found there."""

    module: nn.Module
    where: Where
    in_place: bool
    width: int
    before_gain: bool = False
    gain: Gain | None = field(default=None, compare=False)
    """A hook point before a norm's gain. The hooked activation is the one after it: readers take the gain `off`,
    writers put it `on` again."""

    @property
    def comes_first(self) -> bool:
        """Of several hooks at one side of a module: the others get what this one has written."""
        return self.in_place or self.before_gain

    def seen(self, x: Tensor) -> Tensor:
        """The activation at the hook point, of what is hooked."""
        return x if self.gain is None else self.gain.off(x)

    def install(self, edit: Edit) -> RemovableHandle:
        """Call `edit` with the activation of every forward pass until the handle is removed.

        Errors of `edit` pass through the model's forward pass. If a module gets or returns no activation
        (a tensor, the first of a tuple or ModelOutput, the first argument or the keyword `hidden_states`),
        `edit` is not called: count the calls.
        """

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(x, Tensor) or (new := edit(x)) is None:
                return None
            if self.in_place:
                x.copy_(new)
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple | ModelOutput) else None
            new = edit(x) if isinstance(x, Tensor) else None
            return None if new is None else _with_first(output, new)

        if self.where == "output":
            return self.module.register_forward_hook(after)
        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def _with_first(output: Any, new: Tensor) -> Any:
    """The module's output with `new` in the place of its (first) tensor."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, ModelOutput):
        first = next(iter(output))
        return type(output)(**{**output, first: new})
    rest = output[1:]
    return type(output)(new, *rest) if hasattr(output, "_fields") else (new, *rest)


class Architecture:
    """The hook points of one loaded model."""

    def __init__(self, model: nn.Module, config: Any, family: Family | None = None) -> None:
        """Find the blocks and the width of every kind; `family` is that of the model's type.

        Raises `ModelLoadError` for an unknown model type, or a model whose modules do not match its type.
        """
        self.model_type: str = config.model_type
        family = family or FAMILIES.get(self.model_type)
        if family is None:
            known = ", ".join(sorted(FAMILIES))
            raise ModelLoadError(
                f"models of type {self.model_type} are not supported; supported are {known}",
                model_type=self.model_type,
                supported=sorted(FAMILIES),
            )
        for name, value in family.needs.items():
            if getattr(config, name, value) != value:
                raise ModelLoadError(
                    f"models of type {self.model_type} with {name} other than {value} are not supported",
                    model_type=self.model_type,
                )
        self._family = family.of(config)
        quantised = getattr(config, "quantization_config", None) is not None
        self._lacks: dict[HookKind, str] = {
            **(dict.fromkeys(READ_BY_A_MATRIX, FUSED) if quantised else {}),
            **self._family.without,
        }
        try:
            blocks = list(model.get_submodule(family.blocks).children())
            self._modules = [self._found(block) for block in blocks]
            self._norms = [
                {kind: block.get_submodule(path) for kind, path in self._family.norms.items()} for block in blocks
            ]
        except AttributeError:
            blocks = []
        if not blocks:
            raise ModelLoadError(f"the model's modules do not match the type {self.model_type}")
        self.blocks = blocks
        self.num_layers = len(blocks)
        self.hidden_size: int = config.hidden_size
        self.layer_widths: dict[HookKind, tuple[int, ...]] = {
            kind: widths for kind in self._family.places if any(widths := tuple(self._widths(kind)))
        }
        """Kind → the width at each layer; 0 where the layer has no such hook point."""
        self.widths: dict[HookKind, int] = {kind: max(widths) for kind, widths in self.layer_widths.items()}
        self.before: dict[HookKind, tuple[Before, ...]] = self._family.before
        """Kind that is a norm's output → on which sides of that norm there is a hook point too."""
        self.layer_norm = family.layer_norm
        self._gains: dict[HookPoint, Gain | None] = {}

    def _found(self, block: nn.Module) -> dict[HookKind, nn.Module]:
        """The modules of a block's hook points; `AttributeError` if one is missing that every block must have."""
        found = {}
        for kind, place in self._family.places.items():
            path = next((path for path in place.paths if _has(block, path)), None)
            if path is not None and (kind not in READ_BY_A_MATRIX or _columns(block.get_submodule(path))):
                found[kind] = block.get_submodule(path)
            elif kind not in self._lacks:
                raise AttributeError(kind)
        return found

    def _widths(self, kind: HookKind) -> Iterator[int]:
        for modules in self._modules:
            if kind not in modules:
                yield 0
            else:
                yield _columns(modules[kind]) if kind in READ_BY_A_MATRIX else self.hidden_size

    @property
    def without(self) -> dict[HookKind, str]:
        """Kinds that the model, or some of its layers, lack, and why."""
        lacking = {kind for kind in HOOK_KINDS if 0 in self.layer_widths.get(kind, (0,))}
        return {kind: reason for kind, reason in self._lacks.items() if kind in lacking}

    def hook(self, hook_point: HookPoint) -> Hook:
        """The module of a hook point.

        `SAEIncompatibleError` for a kind that this model lacks, or a side of its norm, or for a place before a gain
        that is 0 somewhere; `LayerOutOfRangeError` for a layer it lacks.
        """
        if hook_point.kind not in self.widths:
            raise SAEIncompatibleError(
                f"models of type {self.model_type} have no hook point {hook_point.kind}"
                f"{self._because(hook_point.kind)}; they have {', '.join(sorted(self.widths))}",
                hook_point=str(hook_point),
            )
        if hook_point.layer >= self.num_layers:
            raise LayerOutOfRangeError(
                f"the model has layers 0 to {self.num_layers - 1}, not {hook_point.layer}", num_layers=self.num_layers
            )
        module = self._modules[hook_point.layer].get(hook_point.kind)
        if module is None:
            raise SAEIncompatibleError(
                f"layer {hook_point.layer} has no hook point {hook_point.kind}{self._because(hook_point.kind)}",
                hook_point=str(hook_point),
            )
        place, width = self._family.places[hook_point.kind], self.layer_widths[hook_point.kind][hook_point.layer]
        if hook_point.before is None:
            return Hook(module, place.where, place.in_place, width)
        if hook_point.before not in self.before.get(hook_point.kind, ()):
            raise SAEIncompatibleError(
                f"models of type {self.model_type} have no hook point {hook_point}", hook_point=str(hook_point)
            )
        norm = self._norms[hook_point.layer][hook_point.kind]
        if hook_point.before == "norm":
            return Hook(norm, "input", in_place=False, width=width)
        gain = self._gain(norm, hook_point)
        return Hook(module, place.where, place.in_place, width, before_gain=gain is not None, gain=gain)

    def _because(self, kind: HookKind) -> str:
        reason = self._lacks.get(kind)
        return "" if reason is None else f" ({reason})"

    def _gain(self, norm: nn.Module, hook_point: HookPoint) -> Gain | None:
        """None for a norm without one. Made once: whether it is 0 somewhere waits for the device."""
        if hook_point in self._gains:
            return self._gains[hook_point]
        parameter = getattr(norm, "weight", None)
        if parameter is None:
            return self._gains.setdefault(hook_point, None)
        weight = parameter.detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        gain = weight.to(wide) + self._family.gain_offset
        if not bool((gain != 0).all()):
            raise SAEIncompatibleError(
                f"{hook_point} cannot be computed: the norm's gain is 0 at {int((gain == 0).sum())} of its places",
                hook_point=str(hook_point),
            )
        bias = getattr(norm, "bias", None)
        made = self._gains[hook_point] = Gain(gain, None if bias is None else bias.detach().to(wide))
        return made


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


def _columns(projection: nn.Module) -> int:
    """Width of what a projection reads, 0 if it does not say: quantised weights have any shape, GPT-2's Conv1D is
    [in, out]."""
    columns = getattr(projection, "in_features", None)
    if isinstance(columns, int):
        return columns
    return int(projection.get_parameter("weight").shape[0]) if isinstance(projection, Conv1D) else 0
