"""From the demo's GGUF to a folder that `from_pretrained` loads: the weights as they dequantise, in float32.

transformers reads a GGUF but will not save what it read, so the state is copied into a fresh model. Its
tokenizer conversion knows vocabulary, merges and template, but not the file's pre-tokenizer: that is set here.

Run as a script (`conversion.py GGUF OUT`), in its own process, so that the service never holds its 1.6 GB; it
prints the number of each step done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def convert(gguf: Path, out: Path, step: Callable[[int], None]) -> None:
    """Write `model.safetensors`, `config.json`, `generation_config.json` and the tokenizer into `out`.

    `step(n)` is called as step n of 4 is done; the first, parsing the file, takes most of the time.
    """
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype="float32", **where)
    step(1)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    _set_pre_tokenizer(tokenizer)
    for key in ("local_files_only", "is_local", "gguf_file"):
        tokenizer.init_kwargs.pop(key, None)  # how it was read is not a property of the tokenizer
    tokenizer.model_max_length = read.config.max_position_embeddings
    tokenizer.save_pretrained(out)
    step(2)
    config = read.config
    del config.quantization_config  # what is saved is not quantised any more
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    step(3)
    fresh.save_pretrained(out)
    step(4)


def _set_pre_tokenizer(tokenizer: Any) -> None:
    """Split digits one by one before the byte-level words: the pre-tokenizer that GGUF calls `smollm`.

    Without it the second space of `a  5` is a word with the digit, and the ids are not those the model knows.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda n: print(n, flush=True))
