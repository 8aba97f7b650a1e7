"""The part of the engine that reads and writes tokens, on threads of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..domain.chats import Tokenization
from ..ports import Grammar, Tokenized, TokenizerInfo
from .model.loading import LoadedModel
from .tokens.info import detokenized, info_of
from .tokens.prompts import tokenized
from .worker import Worker


class EngineTokenizer:
    _tokenizer: Worker
    _grammars: Worker

    def _loaded(self) -> LoadedModel:
        """The model; `ModelNotLoadedError` if there is none."""
        raise NotImplementedError

    async def tokenize(
        self,
        prompt: str | Sequence[dict[str, str]] | Sequence[int],
        how: Tokenization | None = None,
        *,
        any_length: bool = False,
    ) -> Tokenized:
        read = partial(tokenized, prompt, self._loaded().tokenizer, how or Tokenization(), any_length=any_length)
        return await self._tokenizer.run(read, "reading the prompt")

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._tokenizer.run(partial(detokenized, token_ids, self._loaded().tokenizer), "decoding tokens")

    async def tokenizer_info(self) -> TokenizerInfo:
        return info_of(self._loaded().tokenizer)

    async def grammar(self, schema: str) -> Grammar:
        compile_ = partial(self._loaded().grammars.compiled, schema)
        return await self._grammars.run(compile_, "compiling the schema")
