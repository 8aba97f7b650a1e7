"""What a model would take, before any of its weights are fetched: from its config alone.

The model is built on torch's meta device, and runs there over a few tokens: parameters and cache have their shapes, and
no memory.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from msgspec import structs
from torch import Tensor

from ...errors import ModelLoadError, SAEError
from ...models.files import read_config
from ...models.quantization import quantization_of
from ...ports import ModelSize
from ..decoding.kv_cache import CacheSize
from ..decoding.model_runner import OwnForward, parts_of_cache
from ..failures import explained
from ..interventions.hook_points import Architecture
from ..memory import SHARE
from .loading import context_length_of, device_of, dtype_of, text_config
from .outline import without_weights
from .quantised import sizes
from .source import settings_folder

TOKENS = 8
"""Run on the meta device to see what a cache holds."""


def model_size(model: str, revision: str, dtype: str, device: str, quantization: str | None = None) -> ModelSize:
    """What a model (folder, or hub id whose settings are in the cache) takes. Blocks: for a worker thread.

    Raises `ModelNotFoundError`; `ModelLoadError` for a device that is not there, a model that is not supported, or
    weights that could not be held so.
    """
    failure: SAEError
    try:
        return _size(model, revision, dtype, device, quantization)
    except Exception as error:  # transformers raises whatever settings lead to; all become ours
        failure = explained(error, f"reading the settings of {model}")
    raise ModelLoadError(failure.detail, model=model) if failure.code == "internal" else failure


def _size(model: str, revision: str, dtype: str, device: str, quantization: str | None) -> ModelSize:
    where = device_of(device)
    folder = settings_folder(model, revision)
    quantised = quantization_of(read_config(folder), quantization, cuda=where.type == "cuda")
    config = text_config(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
    network = without_weights(config)
    architecture = Architecture(network, network.config)
    held = dtype_of(dtype, where)
    if not isinstance(held, torch.dtype):
        held = _dtype_on_disk(config)
    cache = _cache(network, held)
    packed = {} if quantised is None else sizes(network, quantised, config)
    tensors = (*network.named_parameters(), *network.named_buffers())
    return ModelSize(
        model=model,
        model_type=architecture.model_type,
        dtype=str(held).removeprefix("torch."),
        device=str(where),
        quantization=None if quantised is None or quantised.widened else quantised.scheme,
        weights_bytes=sum(packed[name] if name in packed else _nbytes(each, held) for name, each in tensors),
        kv_bytes_per_token=cache.per_position,
        state_bytes=cache.fixed,
        context_length=context_length_of(network.config),
        free_bytes=None,
        max_context=0,
    )


def fitted(size: ModelSize, free: int | None, beside: int, cache_bytes: int) -> ModelSize:
    """With the free memory, and the longest text that has room next to the weights and `beside`: in the cache of the
    settings (`cache_bytes`, 0: none is set), or in its share of what is left."""
    cache = CacheSize(size.kv_bytes_per_token, size.state_bytes)
    longest = size.context_length
    if free is not None or cache_bytes:
        left = cache_bytes if free is None else max(0, free - size.weights_bytes - beside)
        longest = min(longest, cache.longest(min(left, cache_bytes) if cache_bytes else int(SHARE * left)))
    return structs.replace(size, free_bytes=free, max_context=longest)


def _cache(network: Any, dtype: torch.dtype) -> CacheSize:
    forward = OwnForward(network)
    cache = forward.cache()
    with torch.inference_mode():
        forward.logits(range(TOKENS), cache)
    growing, fixed = (sum(_nbytes(each, dtype) for each in tensors) for tensors in parts_of_cache(cache))
    return CacheSize(growing // TOKENS, fixed)


def _nbytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """Of a tensor of the model in bfloat16, if it is held in another type; what transformers keeps in float32 stays."""
    return tensor.numel() * (dtype.itemsize if tensor.dtype == torch.bfloat16 else tensor.itemsize)


def _dtype_on_disk(config: Any) -> torch.dtype:
    """What `auto` means to transformers; without a word of it in the settings, float32."""
    told = config.dtype
    return told if isinstance(told, torch.dtype) else torch.float32
