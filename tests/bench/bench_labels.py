"""Labels of a wide SAE, in a folder of its own:

    python -m tests.bench.bench_labels [--labels N] [--folder F]

import    Neuronpedia's explanation lines, from the file to the committed tables, checked line by line first, as
          `PUT /api/saes/{id}/labels` does
search    one page of 50: a rare word, a word of every label, all of them by each order; the slowest of 20 rounds

To be met for 16,384 labels: 2 s and 20 ms.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import msgspec

from sae_actor.domain.state import SaeRecord
from sae_actor.features import FeatureDirectory, Sort
from sae_actor.features.lines import entries
from sae_actor.features.matching import Matching
from tests.fakes.hub import description

SAE = "bench-00000000"
ROUNDS = 20
LIMIT = 2**28
WORDS = [f"{a}{b}{c}" for a in ("sea", "book", "night", "stone") for b in ("", "s", "ly", "ing") for c in range(60)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=16384)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        measure(Path(folder), asked.labels)


def measure(folder: Path, count: int) -> None:
    record = SaeRecord(
        sae_id=SAE, source="hub", repository_id="org/saes", revision="main", path="a", status="cached",
        request_position=1, created_at="", sae=description(d_sae=count),
    )  # fmt: skip
    path = folder / "labels.jsonl"
    path.write_bytes(written(count))
    directory = FeatureDirectory(folder)
    began = time.perf_counter()
    checked = sum(1 for _ in entries(path, Matching(record), "bench", LIMIT))
    directory.replace(
        SAE, "bench", "0" * 64, 1, (entry for _, entry in entries(path, Matching(record), "bench", LIMIT))
    )
    print(f"import    {checked} labels in {time.perf_counter() - began:.3f} s")
    rare = directory.search(SAE, sort="index").features[0].label or ""
    asks: list[tuple[str, str, Sort]] = [
        ("a rare word", rare.split()[-1], "index"),
        ("a word of all", "about", "index"),
        ("a word of all, by label", "about", "label"),
        ("all by index", "", "index"),
        ("all by label", "", "label"),
        ("all by density", "", "density"),
    ]
    for name, words, sort in asks:
        slowest = 0.0
        for _ in range(ROUNDS):
            began = time.perf_counter()
            told = directory.search(SAE, words, sort=sort)
            slowest = max(slowest, time.perf_counter() - began)
        print(f"search    {name}: {told.total} found, {slowest * 1000:.2f} ms at most")
    directory.close()


def written(count: int) -> bytes:
    chance = random.Random(0)
    lines = (
        {"modelId": "tiny", "layer": "1-res", "index": str(n), "typeName": "oai_token-act-pair",
         "description": f"words about {' '.join(chance.choices(WORDS, k=6))} {n}x", "createdAt": "2025-01-01"}
        for n in range(count)
    )  # fmt: skip
    return b"".join(msgspec.json.encode(each) + b"\n" for each in lines)


if __name__ == "__main__":
    main()
