"""The environment, on which a generation depends too: versions, device, digests. Logged with `ModelLoaded`."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import huggingface_hub
import llguidance
import safetensors
import tokenizers
import torch
import transformers

from ... import __version__

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_DRIVER = Path("/proc/driver/nvidia/version")


def environment(
    commit: str | None, digests: dict[str, str], model: Any, tokenizer: Any, device: torch.device
) -> dict[str, Any]:
    """The `environment` that a model's facts record; `digests` are those of the model's files."""
    of_tokenizer = "\n".join(f"{name} {digests[name]}" for name in _TOKENIZER_FILES if name in digests)
    template = tokenizer.chat_template
    return {
        "sae_actor": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "huggingface_hub": huggingface_hub.__version__,
        "llguidance": llguidance.__version__,
        "machine": platform.machine(),
        **device_facts(device),
        "threads": torch.get_num_threads(),
        "model_commit": commit,
        "model_files": digests,
        "tokenizer_sha256": hashlib.sha256(of_tokenizer.encode()).hexdigest(),
        "chat_template_sha256": None if not template else hashlib.sha256(repr(template).encode()).hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "graphs": False,
        "compile": False,
        "batching": False,
        "prefix_sharing": False,
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, driver and number formats of the device."""
    if device.type != "cuda":
        return {"device": "cpu", "device_name": platform.processor() or platform.machine(), "driver": None,
                "cpu_capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip
    driver = _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else None
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
