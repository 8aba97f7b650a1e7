"""Labels of a wide SAE, in a folder of its own:

    python -m tests.bench.bench_labels [--labels N] [--folder F]

import    Neuronpedia's explanation lines, from the file to the committed tables, checked line by line first, as
          `PUT /api/saes/{id}/labels` does
search    one page of 50: a rare word, a word of every label, all of them by each order; median and slowest of 20 rounds

Both in the process itself, and through HTTP on a socket: there with the upload, the event in the log and the JSON of
the page, client and service in one process. Where other programs take the processors, look at the time of computing.
To be met for 16,384 labels: 2 s and 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from sae_actor.domain.state import SaeRecord
from sae_actor.features import FeatureDirectory, Sort
from sae_actor.features.lines import entries
from sae_actor.features.matching import Matching
from tests.api.conftest import REPOSITORY, serving
from tests.fakes.hub import FakeHub, description

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
        asyncio.run(measure_http(Path(folder), asked.labels))


ASKS: list[tuple[str, str, Sort]] = [
    ("a rare word", "", "index"),
    ("a word of all", "about", "index"),
    ("a word of all, by label", "about", "label"),
    ("all by index", "", "index"),
    ("all by label", "", "label"),
    ("all by density", "", "density"),
]
"""Name, words (of the first: to be filled in), order."""


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
    for at, (name, words, sort) in enumerate(ASKS):
        asked, taken = words if at else rare.split()[-1], []
        for _ in range(ROUNDS):
            moment = Moment()
            told = directory.search(SAE, asked, sort=sort)
            taken.append(moment.since())
        print(f"search    {name}: {told.total} found, {spread(taken)}")
    directory.close()


async def measure_http(folder: Path, count: int) -> None:
    body = written(count)
    hub = FakeHub()
    hub.publish(REPOSITORY, "of-the-bench", description(d_sae=count))
    (folder / "served").mkdir()
    async with serving(hub=hub, data=folder / "served", upload_bytes=LIMIT) as service:
        sae_id = await service.download("of-the-bench")
        path = f"/api/saes/{sae_id}"
        began = Moment()
        told = await service.client.put(
            f"{path}/labels", content=body, headers={"content-type": "application/x-ndjson"}
        )
        seconds, computed = began.since()
        assert told.status_code == 200, told.text
        print(
            f"import    through HTTP: {told.json()['labels']} labels in {seconds:.3f} s ({computed:.3f} of computing)"
        )
        first = await service.client.get(f"{path}/features", params={"limit": 1})
        rare = first.json()["features"][0]["label"].split()[-1]
        for at, (name, words, sort) in enumerate(ASKS):
            query = {"q": words if at else rare, "sort": sort}
            taken = []
            for _ in range(ROUNDS):
                began = Moment()
                found = await service.client.get(f"{path}/features", params=query)
                taken.append(began.since())
            print(f"search    through HTTP, {name}: {found.json()['total']} found, {spread(taken)}")


class Moment:
    def __init__(self) -> None:
        self._clock, self._computed = time.perf_counter(), time.process_time()

    def since(self) -> tuple[float, float]:
        """Seconds, and seconds of computing."""
        return time.perf_counter() - self._clock, time.process_time() - self._computed


def spread(taken: list[tuple[float, float]]) -> str:
    clock, computed = ([1000 * each for each in column] for column in zip(*taken, strict=True))
    return (
        f"{statistics.median(clock):.2f} ms ({statistics.median(computed):.2f} of computing), {max(clock):.2f} at most"
    )


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
