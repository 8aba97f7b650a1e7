"""The fake engine's tokens in writing: bytes, the end token, and what special tokens a test gives it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.fakes.text import END


class Voice:
    """As `sae_actor.engine.tokens.answers.Voice`."""

    def __init__(self, specials: Sequence[str] = ()) -> None:
        self._written = {END + at: text for at, text in enumerate(("<end>", *specials))}

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._written)

    @property
    def mark_ids(self) -> frozenset[int]:
        return frozenset(self._written) - {END}

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        written = {**self._written} if special else dict.fromkeys(self._written, "")
        said = b"".join(bytes([each]) if each < END else written[each].encode() for each in ids)
        return said.decode("utf-8", "replace")

    def written(self, token: int) -> str:
        return self._written[token] if token in self._written else self.decode([token])

    def ids(self, text: str) -> list[int]:
        """Special tokens where the text writes them, bytes elsewhere."""
        known = {written: token for token, written in self._written.items()}
        pattern = "|".join(map(re.escape, known))
        parts = re.split(f"({pattern})", text)
        return [each for part in parts for each in ((known[part],) if part in known else part.encode())]
