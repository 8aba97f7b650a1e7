"""SAEs in the memory of the device: loaded and checked on the CPU, copied over, measured, freed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace

from ...domain.effects import AttachEffect
from ...domain.placement import target
from ...domain.refs import Edit, HookPoint, ModelFacts
from ...errors import LayerOutOfRangeError, SAEError, SAEIncompatibleError
from ...sae import SAE, load_sae
from ...sae.steering import Steering
from ..failures import attempt
from ..model.loading import release

PREPARED_KEPT = 16
"""Sets of edits per SAE whose gathered rows are kept for the next request."""
PREPARED_BYTES = 64 * 2**20
"""What they may take together, the newest apart."""


@dataclass
class Resident:
    """One SAE on the device."""

    position: int
    """`request_position` of the AttachRequested that brought it."""
    sae: SAE
    hook_point: HookPoint
    hook_point_out: HookPoint | None
    where_trained: bool = False
    """It is at the hook point that its files name."""
    device_bytes: int = 0
    _prepared: OrderedDict[tuple[Edit, ...], Steering] = field(default_factory=OrderedDict)

    @property
    def written_at(self) -> HookPoint:
        return self.hook_point_out or self.hook_point

    @property
    def dtype(self) -> str:
        return str(self.sae.dtype).removeprefix("torch.")

    def steering(self, edits: tuple[Edit, ...], written_in: torch.dtype | None = None) -> Steering:
        """The edits, ready to be applied to activations of a type. Raises what `Steering.prepare` raises."""
        steering = self._prepared.pop(edits, None) or Steering.prepare(self.sae, edits, written_in)
        self._prepared[edits] = steering
        taken = sum(each.nbytes for each in self._prepared.values())
        while len(self._prepared) > 1 and (len(self._prepared) > PREPARED_KEPT or taken > PREPARED_BYTES):
            taken -= self._prepared.popitem(last=False)[1].nbytes
        return steering


def load_resident(effect: AttachEffect, folder: str, model: ModelFacts) -> Resident:
    """The SAE of `effect` on the CPU, checked against the model. Blocks: for a worker thread.

    For a model on the CPU, matrices in files that only the service writes stay mapped; the hub checked their values on
    arrival. Others could be truncated meanwhile, so they are copied and checked.

    `SAEIncompatibleError` (with `sae_d_in`, `model_d`), `LayerOutOfRangeError`, and what `load_sae` raises.
    """
    sae = load_sae(
        folder,
        device="cpu",
        dtype=effect.dtype,
        mapped=is_mapped(effect, model),
        repository_id=effect.location.repository_id,
        layer=effect.location.layer,
    )
    check_fit(effect.hook_point, sae.spec.d_in, model)
    check_fit(effect.hook_point_out or effect.hook_point, sae.spec.d_out, model)
    where_trained = _is_where_trained(effect, sae, model)
    return Resident(effect.request_position, sae, effect.hook_point, effect.hook_point_out, where_trained)


def _is_where_trained(effect: AttachEffect, sae: SAE, model: ModelFacts) -> bool:
    spec = sae.spec
    said = replace(effect.sae, hook_name=spec.hook_name, hook_point=spec.hook_point, hook_point_out=spec.hook_point_out)
    try:
        trained = target(said, model, None, None)
    except SAEError:
        return False
    return (trained.hook_point, trained.hook_point_out) == (effect.hook_point, effect.hook_point_out)


def is_mapped(effect: AttachEffect, model: ModelFacts) -> bool:
    """Whether the SAE's matrices stay in their files; those of a BatchTopK checkpoint are made of what is there."""
    as_stored = not effect.sae.architecture.endswith("batchtopk")
    return effect.location.written_by_service and model.device == "cpu" and as_stored


def check_fit(point: HookPoint, width: int, model: ModelFacts) -> None:
    """`SAEIncompatibleError` or `LayerOutOfRangeError` if `model` has no activation of this width at `point`."""
    if point.layer >= model.num_layers:
        raise LayerOutOfRangeError(
            f"the model has layers 0 to {model.num_layers - 1}, not {point.layer}", num_layers=model.num_layers
        )
    found = model.width(point)
    if found != width:
        raise SAEIncompatibleError(
            f"the SAE needs {width} values, the model has {found or 'nothing'} at {point}",
            sae_d_in=width,
            model_d=found or None,
        )


def place(resident: Resident, device: torch.device) -> None:
    """Copy to the device and measure: tensor bytes on the CPU, what the allocator gave on CUDA.

    `OutOfMemoryError` leaves the resident on the CPU and the device as it was.
    """
    if device.type == "cpu":
        resident.device_bytes = resident.sae.nbytes
        return
    before = torch.cuda.memory_allocated(device)
    try:
        resident.sae = attempt(lambda: resident.sae.to(device), "moving the SAE to the device")
    except SAEError:
        release(device)
        raise
    resident.device_bytes = torch.cuda.memory_allocated(device) - before


def free(residents: dict[int, Resident], position: int) -> int:
    """Drop one resident; returns the bytes freed on its device, 0 if there is none."""
    resident = residents.pop(position, None)
    if resident is None:
        return 0
    device = resident.sae.device
    if device.type == "cpu":
        return resident.sae.nbytes
    before = torch.cuda.memory_allocated(device)
    del resident
    freed = before - torch.cuda.memory_allocated(device)
    release(device)
    return freed
