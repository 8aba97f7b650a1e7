"""Weights that are quantised: by their checkpoint, or as they are loaded.

Without torch: the child that fetches a model finds out here whether it could be read, before it fetches its weights.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..errors import ModelLoadError

BITSANDBYTES = "bitsandbytes"
EXTRA = "sae-actor[quantized]"


@dataclass(frozen=True)
class Method:
    """What reads the weights that a method of quantisation has written."""

    modules: tuple[str, ...] = ()
    """Python modules that must be there."""
    install: str = ""
    """What pip installs them with."""
    cuda: bool = False
    """It computes on CUDA devices alone."""
    widened: bool = False
    """Where one of these is missing, transformers makes plain numbers of the weights."""


METHODS: Mapping[str, Method] = {
    BITSANDBYTES: Method(("bitsandbytes", "accelerate"), f"'{EXTRA}'"),
    "gptq": Method(("optimum", "gptqmodel"), "optimum gptqmodel"),
    "awq": Method(("gptqmodel",), "gptqmodel"),
    "compressed-tensors": Method(("compressed_tensors",), "compressed-tensors"),
    "torchao": Method(("torchao",), "torchao"),
    "hqq": Method(("hqq",), "hqq", cuda=True),
    "fbgemm_fp8": Method(("fbgemm_gpu",), "fbgemm-gpu", cuda=True),
    "fp8": Method(("kernels", "triton"), "kernels triton", cuda=True, widened=True),
    "mxfp4": Method(("kernels", "triton"), "kernels triton", cuda=True, widened=True),
}
"""`quant_method` in the `quantization_config` of a model's `config.json` → what it needs."""


class Quantization(NamedTuple):
    """How a model's weights are held."""

    scheme: str
    """`int8`, `nf4`, `fp4`; of other libraries than bitsandbytes the name of their method."""
    method: str
    """A key of `METHODS`."""
    of_checkpoint: bool
    """The checkpoint is quantised; else the weights are as they are loaded."""
    widened: bool = False
    """The model computes with plain numbers made of the checkpoint's."""


def quantization_of(config: Mapping[str, Any], requested: str | None, *, cuda: bool) -> Quantization | None:
    """How the weights of a model with that `config.json` would be held on a device (`cuda`: a CUDA device); None: as
    plain numbers that are on disk as such.

    `ModelLoadError` (with `scheme`) for a method that is not known or lacks what reads it; for a checkpoint that is
    quantised if `asked` (int8, nf4) says to quantise it.
    """
    own = own_settings(config)
    if own is None:
        if requested is None:
            return None
        _require(BITSANDBYTES, f"quantization {requested}", cuda=cuda)
        return Quantization(requested, BITSANDBYTES, of_checkpoint=False)
    name = _name(own)
    if requested is not None:
        raise ModelLoadError(f"the model's weights are quantised already ({name}): leave quantization out", scheme=name)
    method = METHODS.get(name)
    if method is None:
        raise ModelLoadError(
            f"the model's weights are quantised by {name}, which is not supported; supported are {', '.join(METHODS)}",
            scheme=name,
        )
    if method.widened and _lacks(method, cuda=cuda):
        return Quantization(name, name, of_checkpoint=True, widened=True)
    _require(name, f"the model's weights, which are quantised by {name}", cuda=cuda)
    return Quantization(_scheme(name, own), name, of_checkpoint=True)


def has_cuda(device: str) -> bool:
    """Whether a model for `device` (auto, cpu, cuda or cuda:N) would come to a CUDA device, going by the driver."""
    if device == "cpu":
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def own_settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a `config.json` says of its checkpoint's quantisation; of a multimodal model, of its text part's."""
    text = config.get("text_config")
    for each in (config, text if isinstance(text, Mapping) else {}):
        found = each.get("quantization_config")
        if isinstance(found, Mapping):
            return found
    return None


def _name(own: Mapping[str, Any]) -> str:
    """Older checkpoints of bitsandbytes do not name it."""
    if own.get("load_in_4bit") or own.get("load_in_8bit"):
        return BITSANDBYTES
    return str(own.get("quant_method"))


def _scheme(name: str, own: Mapping[str, Any]) -> str:
    if name != BITSANDBYTES:
        return name
    return str(own.get("bnb_4bit_quant_type", "fp4")) if own.get("load_in_4bit") else "int8"


def _lacks(method: Method, *, cuda: bool) -> list[str]:
    """What is missing here, in words."""
    modules = [name for name in method.modules if find_spec(name) is None]
    missing = [f"{' and '.join(modules)} (pip install {method.install})"] if modules else []
    return [*missing, "a CUDA device"] if method.cuda and not cuda else missing


def _require(name: str, what: str, *, cuda: bool) -> None:
    missing = _lacks(METHODS[name], cuda=cuda)
    if missing:
        raise ModelLoadError(f"{what} cannot be loaded here: that takes {' and '.join(missing)}", scheme=name)
