"""Weights that are quantised, in torch: how transformers loads them, what they are in memory, what they would be."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ...errors import ModelLoadError
from ...models.quantization import BITSANDBYTES, METHODS, Quantization, own_settings

BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4 bit."""
NESTED_BLOCK = 256
"""Scales that share a scale, where a checkpoint has quantised them too."""


def arguments(found: Quantization | None, config: Any, dtype: torch.dtype | str, device: torch.device) -> Any:
    """What `from_pretrained` is given besides a plain model's arguments. What is quantised comes to its device at once:
    some libraries hold it differently on each."""
    if found is None:
        return {}
    if found.widened:
        config.quantization_config = {**_plain(config.quantization_config), "dequantize": True}
        return {}
    placed = {"device_map": {"": str(device)}}
    if found.of_checkpoint:
        return placed
    if found.scheme == "int8":
        return {**placed, "quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    computed = dtype if isinstance(dtype, torch.dtype) else getattr(config, "dtype", None) or torch.float32
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=found.scheme, bnb_4bit_compute_dtype=computed
    )
    return {**placed, "quantization_config": four_bits}


def settle(found: Quantization | None, network: Any, dtype: torch.dtype | str) -> None:
    """Let the model compute in its type, whatever the checkpoint was made with.

    bitsandbytes' 4 bit matrices would do it in the checkpoint's, and on CPUs that have instructions for bfloat16 in
    that, packed in a way that narrow ones cannot be. What transformers widens is in bfloat16, and beside quantised
    matrices it leaves the types of the files. `ModelLoadError` if no matrix was quantised.
    """
    if found is None:
        return
    if found.of_checkpoint and (found.widened or found.method == BITSANDBYTES) and isinstance(dtype, torch.dtype):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    if found.method == BITSANDBYTES and not _matrices(network):
        raise _unquantised(found, network)
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = network.dtype, True


def recorded(found: Quantization | None, network: Any) -> dict[str, Any]:
    """What a model's environment says of it."""
    if found is None:
        return {"quantization": None}
    settings = found._asdict()
    if found.method == BITSANDBYTES:
        settings["matrices"] = _matrices(network)
    versions = {} if found.widened else _versions(METHODS[found.method].modules)
    return {"quantization": settings, **versions}


def _matrices(network: nn.Module) -> int:
    """Of bitsandbytes: experts that are one tensor, and classes derived from Linear, stay plain."""
    return sum(type(module).__module__.partition(".")[0] == BITSANDBYTES for module in network.modules())


def _unquantised(found: Quantization, network: Any) -> ModelLoadError:
    what = f"{BITSANDBYTES} quantises no matrix of {type(network).__name__}"
    return ModelLoadError(f"{what}: leave quantization out", scheme=found.scheme)


def _versions(modules: Iterable[str]) -> dict[str, str]:
    packages = importlib.metadata.packages_distributions()
    names = (packages.get(module, [module])[0] for module in modules)
    return {name: importlib.metadata.version(name) for name in names}


# — in memory —


def nbytes(network: nn.Module) -> int:
    """Of all that a model holds: parameters, buffers, and the scales that quantised ones keep beside them. What is held
    twice counts once."""
    found = {tensor.data_ptr(): tensor.nbytes for tensor in _held(network)}
    return sum(found.values())


def _held(network: nn.Module) -> Iterator[Tensor]:
    for parameter in network.parameters():
        yield parameter
        yield from _tensors_of(parameter)
    yield from network.buffers()
    for module in network.modules():
        # bitsandbytes' 8 bit keeps its scales in a state of the module once that has run.
        yield from _tensors_of(module.__dict__.get("state"))


def _tensors_of(of: Any) -> Iterator[Tensor]:
    """The tensors among something's attributes, and those of its states of quantisation."""
    for name, value in getattr(of, "__dict__", {}).items():
        if isinstance(value, Tensor):
            yield value
        elif name in ("quant_state", "state2"):
            yield from _tensors_of(value)


# — before it is in memory —


def sizes(network: Any, found: Quantization, config: Any) -> dict[str, int]:
    """Bytes of each matrix that would be quantised, by the name of its parameter; `network` may be without weights.

    `ModelLoadError` where no library's own count is known here.
    """
    if found.widened:
        return {}
    if found.method != BITSANDBYTES:
        raise ModelLoadError(f"what weights in {found.scheme} take is known once they are loaded", scheme=found.scheme)
    own = own_settings({"quantization_config": _plain(getattr(config, "quantization_config", None))}) or {}
    skipped = HfQuantizer.get_modules_to_not_convert(
        network, own.get("llm_int8_skip_modules"), network._keep_in_fp32_modules
    )
    nested = bool(own.get("bnb_4bit_use_double_quant"))
    taken = {}
    for name, module in network.named_modules():
        if not (type(module) is nn.Linear or isinstance(module, Conv1D)) or not should_convert_module(name, skipped):
            continue
        weight = module.weight
        if found.scheme == "int8":
            outputs = weight.shape[1] if isinstance(module, Conv1D) else weight.shape[0]
            taken[f"{name}.weight"] = weight.numel() + 4 * int(outputs)
        else:
            taken[f"{name}.weight"] = _four_bits(weight.numel(), nested=nested)
    if not taken:
        raise _unquantised(found, network)
    return taken


def _four_bits(numbers: int, *, nested: bool) -> int:
    """Two numbers a byte, a scale in float32 for each block, and the 16 values that four bits stand for."""
    scales, values = -(-numbers // BLOCK), 4 * 16
    if not nested:
        return -(-numbers // 2) + 4 * scales + values
    return -(-numbers // 2) + scales + 4 * -(-scales // NESTED_BLOCK) + 4 * 256 + 4 + values


def _plain(settings: Any) -> Mapping[str, Any]:
    return settings if isinstance(settings, Mapping) else settings.to_dict() if hasattr(settings, "to_dict") else {}
