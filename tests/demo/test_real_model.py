"""The prepared model is the one in the GGUF: same weights, same text, the tokenizer's own pre-tokenizer."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

pytestmark = pytest.mark.model

MESSAGES = [{"role": "user", "content": "Tell me about your day."}]
# Greedy answer of the model as transformers reads it from the GGUF (float32, recorded from that path).
FROM_GGUF = (
    "It's a typical Monday, and I'm happy to share a bit about my day. Today, I'm in the IT department, working on a "
    "new project. I'm a bit overwhelmed, but I'm excited to get started.\n\nI've been working on a new software "
    "application, and"
)
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nTell me about your day.<|im_end|>\n<|im_start|>assistant\n"
)


def test_greedy_answer_is_that_of_the_gguf(real_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_model)
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(prompt["input_ids"][0]) == PROMPT
    with torch.no_grad():
        out = model.generate(**prompt, do_sample=False, max_new_tokens=60)
    assert tokenizer.decode(out[0, prompt["input_ids"].shape[1] :]) == FROM_GGUF
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert config.rope_parameters["rope_theta"] == 100_000
    assert config.max_position_embeddings == 8192
    assert getattr(config, "quantization_config", None) is None


def test_special_tokens_and_generation_config(real_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    generation = GenerationConfig.from_pretrained(real_model)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 8192
    own = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert "SmolLM" not in tokenizer.apply_chat_template(own, tokenize=False)


def test_digits_are_split_before_words(real_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  5")["input_ids"]) == ["a", "ĠĠ", "5"]
    text = "12345 and 3.14\n\n  42 café 日本"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
