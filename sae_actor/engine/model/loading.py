"""A causal language model in memory: loaded on the CPU, checked, then moved to its device.

Loading happens in a worker thread, moving on the device thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from msgspec import structs
from transformers.utils import logging as transformers_logging

from ...domain.effects import LoadModelEffect
from ...domain.refs import HookPoint, ModelFacts
from ...errors import ModelLoadError, SAEError
from ...models.families import TEXT_PART
from ...models.files import read_config
from ...models.quantization import Quantization, quantization_of
from ...ports import OnProgress, Progress
from ...telemetry.libraries import adopt
from ..decoding.grammars import Grammars, byte_tokens
from ..decoding.kv_cache import CacheSize
from ..decoding.model_runner import ModelRunner, runner_for
from ..failures import attempt
from ..interventions.hook_points import READ_BY_A_MATRIX, Architecture
from ..interventions.readouts import Lens
from ..memory import cache_budget
from ..tokens.chat_spans import tells
from ..tokens.chat_templates import ChatTemplate
from ..tokens.control_tokens import Controls
from ..tokens.reasoning import mark_ids, reasoning_of
from ..tokens.token_text import TokenTexts
from ..tokens.tokenizer import Tokenizer
from .building import bounded
from .environment import environment
from .quantised import arguments, nbytes, recorded, settle
from .source import LoadCancelled, ModelFiles, digests, find_model
from .tail import Tail

TEXT_NAMES = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
"""Names of a multimodal checkpoint's text part, as transformers wrote them before 4.52 and since → as the text model
calls them."""


MOST_POSITIONS = 2**31 - 1
"""Of one text."""


@dataclass
class LoadedModel:
    """One model with its tokenizer."""

    position: int
    """`request_position` of its effect."""
    network: Any
    """The transformers model, in eval mode, without gradients."""
    tokenizer: Tokenizer
    grammars: Grammars
    architecture: Architecture
    device: torch.device
    facts: ModelFacts
    runner: ModelRunner | None = None
    """None until the model is on its device."""
    cache_size: CacheSize = CacheSize(0)  # noqa: RUF009 — a tuple
    """The size of one generation's cache."""
    cache_bytes: int = 0
    """The size of the cache for all generations together."""
    lens: Lens | None = None
    """None until the model is on its device."""

    def written_in(self, point: HookPoint) -> torch.dtype:
        """The type that what is written there ends in: matrices in int8 read it as float16."""
        into_matrix = point.kind in ("mlp_in", *READ_BY_A_MATRIX) and point.before is None
        dtype: torch.dtype = self.network.dtype
        return torch.float16 if into_matrix and self.facts.quantization == "int8" else dtype


def load_model(effect: LoadModelEffect, progress: OnProgress, cancelled: threading.Event) -> LoadedModel:
    """Load a model on the CPU. Blocks: for a worker thread.

    Raises `ModelNotFoundError`, `ModelLoadError` (also at the next stage after `cancelled` is set), `OutOfMemoryError`,
    `DiskFullError`.
    """
    load = partial(_load, effect, progress, cancelled)
    return attempt(load, "loading the model", ModelLoadError, model=effect.model)


def _load(effect: LoadModelEffect, progress: OnProgress, cancelled: threading.Event) -> LoadedModel:
    device = device_of(effect.device)

    def stage(name: str) -> None:
        if cancelled.is_set():
            raise LoadCancelled
        progress(Progress(kind="load", subject=effect.model, phase=name))

    stage("finding")
    files = find_model(effect.model, effect.revision)
    quantised = quantization_of(read_config(files.folder), effect.quantization, cuda=device.type == "cuda")
    stage("checking")
    found = digests(files, cancelled)
    stage("loading")
    tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
    # The first call settles how the tokenizer pads and cuts. It may never change that while another thread decodes.
    tokenizer("a")
    around = _around(tokenizer)
    network = _network(files, dtype_of(effect.dtype, device), quantised, device)
    architecture = Architecture(network, network.config)
    ends = network.generation_config.eos_token_id
    template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
    end_ids = frozenset([ends] if isinstance(ends, int) else ends or ())
    vocabulary = network.get_input_embeddings().weight.shape[0]
    context_length = context_length_of(network.config)
    reasoning = reasoning_of(tokenizer, architecture.model_type)
    return LoadedModel(
        position=effect.request_position,
        network=network,
        tokenizer=Tokenizer(
            raw=tokenizer,
            end_ids=end_ids,
            vocabulary=vocabulary,
            special_ids=_special_ids(tokenizer),
            pieces=TokenTexts(tokenizer),
            controls=Controls(tokenizer),
            template=template,
            around=around,
            beginning=tokenizer.bos_token_id,
            reasoning=reasoning,
            mark_ids=mark_ids(reasoning, tokenizer),
            context_length=context_length,
        ),
        grammars=Grammars(byte_tokens(tokenizer, vocabulary, end_ids)),
        architecture=architecture,
        device=device,
        facts=ModelFacts(
            model_id=effect.model,
            revision=effect.revision,
            commit=files.commit,
            model_type=architecture.model_type,
            dtype=str(network.dtype).removeprefix("torch."),
            device=str(device),
            num_layers=architecture.num_layers,
            hidden_size=architecture.hidden_size,
            context_length=context_length,
            memory_bytes=nbytes(network),
            widths={str(kind): width for kind, width in architecture.widths.items()},
            layer_widths={str(kind): each for kind, each in architecture.layer_widths.items() if len(set(each)) > 1},
            without={str(kind): reason for kind, reason in architecture.without.items()},
            before={str(kind): sides for kind, sides in architecture.before.items()},
            layer_norm=architecture.layer_norm,
            has_chat_template=template is not None,
            adds_bos=tokenizer.bos_token_id in around[0],
            tells_messages=template is None or tells(template),
            environment=environment(files.commit, found, network, tokenizer, device) | recorded(quantised, network),
            vocabulary=vocabulary,
            end_ids=tuple(sorted(end_ids)),
        ),
    )


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer puts before and after a text by default."""
    bare, whole = (tokenizer("a", add_special_tokens=each).input_ids for each in (False, True))
    at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), None)
    if at is None:
        raise ModelLoadError("the tokenizer changes the text when it adds special tokens")
    return tuple(whole[:at]), tuple(whole[at + len(bare) :])


def context_length_of(config: Any) -> int:
    """The longest context that the model was made for; `ModelLoadError` if its settings do not say."""
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "seq_length"))
    length = next((each for each in lengths if each), None)
    if length is None:
        raise ModelLoadError("the model's settings do not say how long a text may be (max_position_embeddings)")
    if not 0 < int(length) <= MOST_POSITIONS:
        raise ModelLoadError(f"the model's settings say that a text may have {length:.6g} positions")
    return int(length)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = (token for token, about in tokenizer.added_tokens_decoder.items() if about.special)
    return frozenset((*tokenizer.all_special_ids, *added))


def _network(files: ModelFiles, dtype: torch.dtype | str, quantised: Quantization | None, device: torch.device) -> Any:
    """The transformers model. A file that lacks weights is refused: transformers would make them up."""
    transformers_logging.disable_progress_bar()
    adopt()
    config = text_config(transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=False))
    if quantised is not None:
        # For several devices, which are not used; transformers 5.16 stumbles over them in an fp8 checkpoint.
        config.base_model_tp_plan = config.base_model_ep_plan = {}
    with bounded():
        network, info = transformers.AutoModelForCausalLM.from_pretrained(
            files.folder,
            config=config,
            key_mapping=TEXT_NAMES,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments(quantised, config, dtype, device),
        )
    settle(quantised, network, dtype)
    for flaw, what in (("missing_keys", "lack"), ("mismatched_keys", "have another shape for")):
        if names := sorted(map(str, info.get(flaw, ()))):
            raise ModelLoadError(f"the model's files {what} {names[0]} and {len(names) - 1} others")
    _keep_caps(network)
    return network.eval().requires_grad_(False)


def _keep_caps(network: Any) -> None:
    """Run a model that caps its attention scores (Gemma 2) with an attention implementation that applies the cap.

    transformers 5.16 chooses `sdpa`, which silently drops the cap; 5.23 does not.
    """
    capped = getattr(network.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation("eager")


def text_config(config: Any) -> Any:
    """The config of a multimodal model's text part; for other models the config itself."""
    if config.model_type not in TEXT_PART:
        return config
    text = config.get_text_config()
    tied = config.to_diff_dict().get("tie_word_embeddings")
    if tied is not None:  # some name it for the whole model alone
        text.tie_word_embeddings = tied
    if getattr(text, "quantization_config", None) is None and getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    return text


def device_of(wanted: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device of this machine; `ModelLoadError` if there is none."""
    available = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not available):
        return torch.device("cpu")
    device = torch.device("cuda" if wanted == "auto" else wanted)
    index = device.index or 0
    if not available or index >= torch.cuda.device_count():
        raise ModelLoadError(f"this machine has no device {wanted}", device=wanted)
    return torch.device("cuda", index)


def dtype_of(wanted: str, device: torch.device) -> torch.dtype | str:
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def move(loaded: LoadedModel) -> None:
    """Move the model to its device; after `OutOfMemoryError` nothing is left there."""
    with _dropped_on_failure(loaded):
        attempt(lambda: loaded.network.to(loaded.device), "moving the model to the device")


@contextmanager
def _dropped_on_failure(loaded: LoadedModel) -> Iterator[None]:
    """Without the half-moved network nothing holds the device's memory."""
    try:
        yield
    except SAEError:
        loaded.network = None
        release(loaded.device)
        raise


def fit(loaded: LoadedModel, cache_bytes: int) -> None:
    """Choose how the model, which is on its device, makes tokens, and how large its cache may be.

    `ModelLoadError` for a model that does not run; `OutOfMemoryError`.
    """
    with _dropped_on_failure(loaded):
        tail = Tail(loaded.network, loaded.architecture.blocks)
        found = attempt(
            lambda: runner_for(loaded.network, loaded.tokenizer.vocabulary), "trying the model", ModelLoadError
        )
    context = loaded.facts.context_length
    loaded.runner, loaded.cache_size = found.runner, found.size
    loaded.lens = Lens(tail.logits, loaded.tokenizer.pieces.text, loaded.tokenizer.vocabulary)
    loaded.cache_bytes = cache_budget(cache_bytes, loaded.device, loaded.cache_size.of(context))
    environment_now = {**loaded.facts.environment, "batching": loaded.runner.together}
    positions = loaded.cache_size.longest(loaded.cache_bytes)
    loaded.facts = structs.replace(
        loaded.facts,
        environment=environment_now,
        cache_positions=positions,
        in_turn=found.in_turn,
        memory_bytes=nbytes(loaded.network),
    )


def release(device: torch.device) -> None:
    """Give cached memory back to the device, after the last reference to it is gone."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
