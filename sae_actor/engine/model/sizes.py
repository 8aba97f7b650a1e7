"""The memory that a model needs, from its config alone: its weights need not be fetched.

The model is built on torch's meta device, and runs there on a few tokens: parameters and cache get their shapes, but no
memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from msgspec import structs
from torch import Tensor

from ...errors import ModelLoadError
from ...models.files import read_config
from ...models.quantization import quantization_of
from ...ports import ModelSize
from ..decoding.kv_cache import CacheSize
from ..decoding.model_runner import OwnForward, size_of
from ..failures import attempt
from ..interventions.hook_points import Architecture
from ..memory import SHARE
from .loading import context_length_of, device_of, dtype_of, text_config
from .outline import without_weights
from .quantised import sizes
from .source import settings_folder

MOST_BYTES = 2**50
"""Of weights, or of a position of a cache: what all of it sums up to stays a number of 64 bits."""
TOKENS = 8
"""How many tokens are run on the meta device to see the shapes of the cache."""


def model_size(model: str, revision: str, dtype: str, device: str, quantization: str | None = None) -> ModelSize:
    """The memory that a model (folder, or hub id whose settings are in the cache) needs. Blocks: for a worker thread.

    Raises `ModelNotFoundError`; `ModelLoadError` for a missing device, an unsupported model, or weights that
    cannot be held so.
    """
    measure = partial(_size, model, revision, dtype, device, quantization)
    return attempt(measure, f"reading the settings of {model}", ModelLoadError, model=model)


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
    weights_bytes = sum(packed[name] if name in packed else _nbytes(each, held) for name, each in tensors)
    if max(weights_bytes, cache.per_position, cache.fixed) > MOST_BYTES:
        raise ModelLoadError("the model's settings ask for more memory than there is in the world")
    return ModelSize(
        model=model,
        model_type=architecture.model_type,
        dtype=str(held).removeprefix("torch."),
        device=str(where),
        quantization=None if quantised is None or quantised.widened else quantised.scheme,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=cache.per_position,
        state_bytes=cache.fixed,
        context_length=context_length_of(network.config),
        free_bytes=None,
        max_context=0,
    )


def with_free_memory(size: ModelSize, free: int | None, reserved: int, cache_bytes: int) -> ModelSize:
    """Add the free memory and the longest context that fits into the cache.

    reserved: bytes that other things will take. cache_bytes: the configured limit of the cache; 0 means none: then the
    cache may take its share of the memory that is left.
    """
    cache = CacheSize(size.kv_bytes_per_token, size.state_bytes)
    longest = size.context_length
    if free is not None or cache_bytes:
        left = cache_bytes if free is None else max(0, free - size.weights_bytes - reserved)
        longest = min(longest, cache.longest(min(left, cache_bytes) if cache_bytes else int(SHARE * left)))
    return structs.replace(size, free_bytes=free, max_context=longest)


def _cache(network: Any, dtype: torch.dtype) -> CacheSize:
    forward = OwnForward(network)
    cache = forward.cache()
    with torch.inference_mode():
        forward.logits(range(TOKENS), cache)
    return size_of(cache, TOKENS, lambda tensor: _nbytes(tensor, dtype))


def _nbytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a tensor once loaded as `dtype`. Only bfloat16 tensors are converted: those that transformers keeps in
    float32 stay."""
    return tensor.numel() * (dtype.itemsize if tensor.dtype == torch.bfloat16 else tensor.itemsize)


def _dtype_on_disk(config: Any) -> torch.dtype:
    """The type that transformers loads for `auto`: float32 if the config names none."""
    named = config.dtype
    return named if isinstance(named, torch.dtype) else torch.float32
