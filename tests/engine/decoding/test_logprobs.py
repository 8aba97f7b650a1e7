"""Log probabilities are those of the steered logits, in float32, before temperature and top_p; tokens in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sae_actor.domain.refs import Edit
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.logprobs import LEAST, scored
from sae_actor.engine.tokens.token_text import TokenTexts
from sae_actor.errors import BadRequestError
from sae_actor.sae import load_sae
from tests.engine.asking import active, attach, load, no_progress, read, request
from tests.engine.tiny import END, save_tiny_model, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.anyio

IDS = tuple(range(40, 52))


async def test_they_are_those_of_the_steered_logits(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    steered = active(5, Edit(feature=3, strength=4.0, exclude=()))
    asked = request(IDS, steered, tokens=6, temperature=0.7, top_p=0.8, seed=3, logprobs=5)
    tokens, end = await read(engine.generate(asked))
    reference: Any = tiny_model("llama")
    row = load_sae(tiny_sae).W_dec[3]
    reference.model.layers[1].register_forward_hook(
        lambda _, __, out: out + 4.0 * row if isinstance(out, torch.Tensor) else (out[0] + 4.0 * row, *out[1:])
    )
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([[*IDS, *end.token_ids]])).logits[0]
    expected = logits.float().log_softmax(dim=-1)[len(IDS) - 1 : -1]
    for token, wanted in zip(tokens, expected, strict=True):
        assert token.scored is not None
        assert token.scored.logprob == pytest.approx(float(wanted[token.id]), abs=1e-4)
        assert [each.id for each in token.top] == wanted.topk(5).indices.tolist()
        assert [each.logprob for each in token.top] == pytest.approx(wanted.topk(5).values.tolist(), abs=1e-4)


async def test_scores_of_attention_are_capped(tmp_path: Path) -> None:
    """Gemma 2's cap. transformers 5.16 chooses an attention for it that drops the cap, and says nothing."""
    folder = save_tiny_model(tmp_path / "model", "gemma2", attn_logit_softcapping=0.05)
    engine = TorchEngine(EngineSettings(threads=1))
    facts = await engine.load_model(load(str(folder)), no_progress)
    assert (facts.environment["attention"], facts.environment["batching"]) == ("eager", True)
    found = []
    for deterministic in (False, True):
        asked = request(IDS, tokens=1, logprobs=5, deterministic=deterministic)
        tokens, _ = await read(engine.generate(asked))
        found.append([each.logprob for each in tokens[0].top])
    await engine.close()
    with torch.inference_mode():
        capped, free = (
            eager("gemma2", attn_logit_softcapping=cap)(input_ids=torch.tensor([IDS])).logits[0, -1].log_softmax(dim=-1)
            for cap in (0.05, None)
        )
    assert (capped - free).abs().max() > 0.05
    for each in found:
        assert each == pytest.approx(capped.topk(5).values.tolist(), abs=1e-4)


def eager(model_type: str, **config: Any) -> Any:
    """The random model of that family with the plain attention of its own file."""
    model: Any = tiny_model(model_type, **config)
    model.set_attn_implementation("eager")
    return model


async def test_offsets_count_what_is_readable(engine: TorchEngine) -> None:
    tokens, end = await read(engine.generate(request(IDS, tokens=40, temperature=1.0, seed=1, logprobs=0)))
    texts = [token.text for token in tokens]
    assert [token.offset for token in tokens] == [sum(map(len, texts[:at])) for at in range(len(tokens))]
    # Special tokens are not shown.
    own = [token.scored for token in tokens if token.scored is not None and token.id < END]
    assert b"".join(each.bytes or b"" for each in own).decode(errors="replace") == end.text


async def test_more_than_there_are(engine: TorchEngine) -> None:
    with pytest.raises(BadRequestError):
        engine.generate(request(IDS, logprobs=-1))
    with pytest.raises(BadRequestError):
        engine.generate(request(IDS, logprobs=261))


def test_what_is_ruled_out_has_a_number() -> None:
    own, top, _ = scored(torch.tensor([0.0, -torch.inf]), 1, 5, TokenTexts(tiny_tokenizer()))
    assert own.logprob == LEAST
    assert [each.logprob for each in top] == [0.0, LEAST]


def test_pieces_of_a_byte_level_vocabulary() -> None:
    tokenizer = tiny_tokenizer()
    pieces = TokenTexts(tokenizer)
    ids = tokenizer("é a").input_ids
    assert [pieces(each) for each in ids] == [("\ufffd", b"\xc3"), ("\ufffd", b"\xa9"), (" ", b" "), ("a", b"a")]
    assert pieces(256) == ("<|end|>", b"<|end|>")
    assert pieces(259)[0].startswith("<|")


def test_pieces_of_a_vocabulary_with_byte_fallback() -> None:
    vocabulary = {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁the": 3, "re": 4, "\ufffd": 5}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=plain))
    assert [pieces(each) for each in (1, 2, 3, 4)] == [
        ("\ufffd", b"\xc3"), ("\ufffd", b"\xa9"), (" the", b" the"), ("re", b"re"),
    ]  # fmt: skip
    assert pieces(5) == ("\ufffd", None)
