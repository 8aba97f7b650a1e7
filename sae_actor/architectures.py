"""The hook points of a loaded model: the places that `families` names, found in its modules.

A hook reads an activation and may put another in its place; widths are those of the modules themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils import ModelOutput

from .domain.refs import HookKind, HookPoint
from .errors import LayerOutOfRangeError, ModelLoadError, SAEIncompatibleError
from .families import FAMILIES, Where

Edit = Callable[[Tensor], Tensor | None]
"""Gets an activation [..., width]; returns what takes its place (same shape and type), or None to leave it."""


@dataclass(frozen=True)
class Hook:
    """A resolved hook point: the module, and how its activation is found there."""

    module: nn.Module
    where: Where
    in_place: bool
    width: int

    def install(self, edit: Edit) -> RemovableHandle:
        """Call `edit` with the activation of every forward pass until the handle is removed.

        What `edit` raises goes through the model's forward pass. Where a module gets or returns no activation
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

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Find the blocks and the width of every kind.

        Raises `ModelLoadError` for a model type that is not known, or a model that is not built as its type says.
        """
        self.model_type: str = config.model_type
        family = FAMILIES.get(self.model_type)
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
        places = dict(family.places)
        if family.parallel_when is not None and getattr(config, family.parallel_when):
            places.pop("resid_mid")
        try:
            blocks = list(model.get_submodule(family.blocks).children())
            modules = [{kind: block.get_submodule(place.path) for kind, place in places.items()} for block in blocks]
        except AttributeError:
            modules = []
        if not modules:
            raise ModelLoadError(f"the model is not built like one of type {self.model_type}")
        self.num_layers = len(modules)
        self.hidden_size: int = config.hidden_size
        self.widths: dict[HookKind, int] = {
            kind: _columns(modules[0][kind]) if kind in ("attn_z", "mlp_act") else self.hidden_size for kind in places
        }
        self._places = places
        self._modules = modules

    def hook(self, hook_point: HookPoint) -> Hook:
        """The module of a hook point.

        `SAEIncompatibleError` for a kind that this model lacks, `LayerOutOfRangeError` for a layer it lacks.
        """
        place = self._places.get(hook_point.kind)
        if place is None:
            raise SAEIncompatibleError(
                f"models of type {self.model_type} have no hook point {hook_point.kind}; "
                f"they have {', '.join(sorted(self._places))}",
                hook_point=str(hook_point),
            )
        if hook_point.layer >= self.num_layers:
            raise LayerOutOfRangeError(
                f"the model has layers 0 to {self.num_layers - 1}, not {hook_point.layer}", num_layers=self.num_layers
            )
        module = self._modules[hook_point.layer][hook_point.kind]
        return Hook(module, place.where, place.in_place, self.widths[hook_point.kind])


def _columns(projection: nn.Module) -> int:
    """Width of what a projection reads: torch's Linear is [out, in], GPT-2's Conv1D is [in, out]."""
    weight = projection.get_parameter("weight")
    return int(weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0])
