"""How the fake engine reads prompts: a byte is a token, and so is each special token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from msgspec.structs import replace

from sae_actor.domain.chats import MessageSpan, Reasoning, Tokenization
from sae_actor.domain.refs import ModelFacts
from sae_actor.errors import BadRequestError, ModelNotLoadedError
from sae_actor.ports import Tokenized, TokenizerInfo
from tests.fakes.text import END
from tests.fakes.voice import Voice

VOCABULARY = END + 1


class FakeTokenizing:
    """The part of `FakeEngine` that turns texts into tokens; its settings are those of the engine."""

    model: ModelFacts | None
    adds_bos: bool
    tells_messages: bool
    specials: Sequence[str]
    reasoning: Reasoning | None

    @property
    def vocabulary(self) -> int:
        return VOCABULARY + len(self.specials)

    @property
    def voice(self) -> Voice:
        return Voice(self.specials)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text in which special ones are written out."""
        return self.voice.ids(text)

    async def tokenize(
        self,
        prompt: str | Sequence[dict[str, str]] | Sequence[int],
        how: Tokenization | None = None,
        *,
        any_length: bool = False,
    ) -> Tokenized:
        model, how = self._loaded(), how or Tokenization()
        ids: tuple[int, ...]
        told: list[MessageSpan] = []
        chat = False
        if isinstance(prompt, str):
            texts = prompt.split("<end>") if how.parse_special else [prompt]
            ids = tuple(_bytes(texts[0])) + tuple(each for text in texts[1:] for each in (END, *_bytes(text)))
            ids = self._begun(ids, how, added=how.add_special_tokens is not False)
        elif all(isinstance(item, int) for item in prompt):
            if how.prepend_bos is not None:
                raise BadRequestError("token ids are used as given", param="prepend_bos")
            ids = tuple(item for item in prompt if isinstance(item, int))
        else:
            if not model.has_chat_template:
                raise BadRequestError("the model has no chat template")
            chat = True
            turns = [item for item in prompt if isinstance(item, dict)]
            ids = self._begun((), how, added=how.add_special_tokens is True)
            for turn in turns:
                head, content = f"<{turn['role']}>".encode(), _bytes(turn["content"])
                said = (len(ids) + len(head), len(ids) + len(head) + len(content))
                told.append(MessageSpan(role=turn["role"], first=len(ids), stop=said[1] + 1, content=said))
                ids += (*head, *content, 10)
            if how.reasoning_effort is not None:
                raise BadRequestError("the template does not read it", param="reasoning_effort")
            if how.continue_final_message:
                ids = ids[:-1]
                told[-1] = replace(told[-1], stop=told[-1].content[1])
            elif how.add_generation_prompt:
                ids += tuple(b"<assistant>")
            mood = (how.chat_template_kwargs or {}).get("mood")
            if mood is not None and not how.continue_final_message:
                ids += tuple(_bytes(f"({mood})"))
        if not ids and not any_length:
            raise BadRequestError("the prompt is empty", param="prompt")
        self._check_ids(ids)
        if any_length and not 1 <= len(ids) <= model.context_length:
            return Tokenized(token_ids=ids, turns=None)
        if len(ids) > model.context_length:
            raise BadRequestError("the prompt is longer than the model's context")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(bytes([each])) if each < END else self.voice.written(each) for each in ids]
        pieces[-1] += decoder.decode(b"", final=True)
        return Tokenized(
            token_ids=ids,
            tokens=tuple(pieces),
            special=tuple(each >= END for each in ids),
            turns=tuple(told) if self.tells_messages or not told else None,
            reasoning=self.reasoning if chat else None,
        )

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        self._loaded()
        self._check_ids(token_ids)
        return self.voice.decode(list(token_ids), special=True)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        if any(not 0 <= each < self.vocabulary for each in token_ids):
            raise BadRequestError("a token id is outside the vocabulary", param="prompt")

    async def tokenizer_info(self) -> TokenizerInfo:
        model = self._loaded()
        return TokenizerInfo(
            tokenizer_class="FakeTokenizer",
            bos_token="<end>",
            eos_token="<end>",
            pad_token=None,
            unk_token=None,
            additional_special_tokens=tuple(self.specials),
            add_bos_token=self.adds_bos,
            chat_template="{{ messages }}" if model.has_chat_template else None,
            model_max_length=model.context_length,
            vocab_size=self.vocabulary,
        )

    def _begun(self, ids: tuple[int, ...], how: Tokenization, *, added: bool) -> tuple[int, ...]:
        wanted = (added and self.adds_bos) if how.prepend_bos is None else how.prepend_bos
        return (END, *ids) if wanted and ids[:1] != (END,) else ids

    def _loaded(self) -> ModelFacts:
        if self.model is None:
            raise ModelNotLoadedError("no model is loaded")
        return self.model


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
