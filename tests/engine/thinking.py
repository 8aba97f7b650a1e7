"""Tiny models whose chats think: tokenizers and templates built like those published, written anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.engine.tiny import tiny_model

HARMONY = ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>")
"""The first of them ends a text, as in the models that write so."""
HARMONY_TEMPLATE = (
    "{{- '<|start|>system<|message|>You answer. Channels: analysis, commentary, final.<|end|>' }}"
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}"
    "{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
QWEN = ("<|im_end|>", "<|im_start|>")
QWEN_TEMPLATE = (
    "{%- for message in messages %}{%- set said = message.content %}"
    "{%- if '</think>' in said %}{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + said + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
R1 = ("<|stop|>", "<|User|>", "<|Assistant|>")
R1_TEMPLATE = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|Assistant|>' + message.content.split('</think>')[-1] + '<|stop|>' }}"
    "{%- else %}{{- '<|User|>' + message.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"
)
PLAIN = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
"""Of a model whose end token is not the one that ends a turn."""
PLAIN_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def tokenizer(specials: Sequence[str], template: str, added: Sequence[str] = ()) -> Any:
    """A token per byte, then the special tokens, of which the first ends a text, then added ones that are text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=specials[0])
    fast.add_special_tokens({"additional_special_tokens": list(specials[1:])})
    fast.add_tokens([AddedToken(each, special=False) for each in added])
    fast.chat_template = template
    return fast


def save(folder: Path, specials: Sequence[str], template: str, added: Sequence[str] = (), **config: Any) -> Path:
    """A tiny model with such a tokenizer; the folder."""
    model: Any = tiny_model(config.pop("model_type", "qwen3"), vocab_size=256 + len(specials) + len(added), **config)
    model.save_pretrained(folder)
    tokenizer(specials, template, added).save_pretrained(folder)
    return folder
