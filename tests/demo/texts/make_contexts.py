"""Makes `contexts.ndjson`: 200 contexts of 128 tokens, half of WordNet's glosses, half of fortunes (Debian packages).

    python -m tests.demo.texts.make_contexts WORDNET_FOLDER FORTUNES_FOLDER

The folders are /usr/share/wordnet of `wordnet-base` and /usr/share/games/fortunes of `fortunes` and `fortunes-min`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

from sae_actor.demo.model import prepare_model

HERE = Path(__file__).parent
EACH, TOKENS = 100, 128


def glosses(folder: Path) -> Iterator[str]:
    """What WordNet says of each meaning, in the order of its files."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8", errors="replace").splitlines():
            if " | " in line:
                yield line.partition(" | ")[2].strip()


def fortunes(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix == "":
            yield from (each.strip() for each in path.read_text(encoding="utf-8").split("\n%\n") if each.strip())


def contexts(tokenizer: object, texts: list[str], seed: int) -> Iterator[str]:
    """Texts in a random order, one after the other, cut into contexts that become as many tokens again."""
    random.Random(seed).shuffle(texts)
    stream = ""
    for text in texts:
        stream += text + "\n"
        ids = tokenizer(stream, add_special_tokens=False).input_ids  # type: ignore[operator]
        if len(ids) > TOKENS + 16:
            made = tokenizer.decode(ids[:TOKENS])  # type: ignore[attr-defined]
            if len(tokenizer(made, add_special_tokens=False).input_ids) == TOKENS:  # type: ignore[operator]
                yield made
            stream = ""


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        prepare_model(Path.home() / ".cache" / "sae-actor-tests", lambda *_: None)
    )
    sources = (list(glosses(Path(sys.argv[1]))), list(fortunes(Path(sys.argv[2]))))
    with (HERE / "contexts.ndjson").open("w", encoding="utf-8") as out:
        for seed, source in enumerate(sources):
            for made, _ in zip(contexts(tokenizer, source, seed), range(EACH), strict=False):
                out.write(json.dumps({"text": made}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
