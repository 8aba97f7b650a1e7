"""A profile in the files of Neuronpedia's bulk downloads, as a tar.

    v1/MODEL/SOURCE/source.jsonl
    v1/MODEL/SOURCE/features/batch-N.jsonl.gz       a line a feature
    v1/MODEL/SOURCE/activations/batch-N.jsonl.gz    a line an example: the top ones (bins −1), then those of intervals

What no profile knows is empty: tokens promoted and suppressed, vectors, neighbours.
"""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct

from ...domain.measuring.state import RunState
from ...domain.state import SaeRecord
from ..store import RunFolder

BATCH = 256
"""Features of a file."""
NEURONPEDIA = "neuronpedia:"
NOWHERE = -1
"""The bounds of an example that is of no interval."""
PARTS = {"resid": "res", "attn": "att", "mlp": "mlp"}


class Source(Struct, frozen=True):
    """What Neuronpedia's files call the SAE."""

    model_id: str
    source_id: str
    """`15-res-2k`: layer, where it reads, width."""
    hook_name: str
    data_source: str

    @property
    def folder(self) -> str:
        return f"v1/{self.model_id}/{self.source_id}"


def source_of(run: RunState, record: SaeRecord | None) -> Source:
    """By Neuronpedia's name, if the SAE was found under one. record: its SAE's, if there still is one."""
    mine, texts = run.saes[0], run.texts[0]
    point = mine.hook_point
    model_id = re.sub(r"[^a-z0-9.]+", "-", run.model.model_id.rsplit("/", 1)[-1].lower()).strip("-.") or "model"
    part = "transcoder" if mine.hook_point_out is not None else PARTS[point.kind.partition("_")[0]]
    source_id = f"{point.layer}-{part}-{_width((run.summary or {}).get('features', 0))}"
    known = "" if record is None else record.named_as or ""
    if known.startswith(NEURONPEDIA):
        model_id, _, source_id = known.removeprefix(NEURONPEDIA).partition("/")
    sae = None if record is None else record.sae
    named = sae.hook_name if sae is not None and sae.hook_point == point else None
    data_source = texts.file or texts.texts_id or f"sha256:{texts.sha256}"
    return Source(model_id, source_id, named or str(point), data_source)


def _width(d_sae: int) -> str:
    return f"{d_sae // 10**6}m" if d_sae >= 10**6 else f"{d_sae // 1000}k" if d_sae >= 1000 else str(d_sae)


def archive(folder: RunFolder, run: RunState, record: SaeRecord | None, after: int) -> Generator[bytes, None, None]:
    """The tar in pieces, of the rows after some. Blocks."""
    source = source_of(run, record)
    yield from _member(f"{source.folder}/source.jsonl", msgspec.json.encode(_source(source, run, record)) + b"\n")
    with closing(folder.open(run.run_id)) as file:
        rows, number = file.all_rows(after), 0
        while batch := list(islice(rows, BATCH)):
            for name, lines in (("features", _features(batch, source)), ("activations", _activations(batch, source))):
                data = gzip.compress(b"".join(msgspec.json.encode(line) + b"\n" for line in lines), 6, mtime=0)
                yield from _member(f"{source.folder}/{name}/batch-{number}.jsonl.gz", data)
            number += 1
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    yield info.tobuf(tarfile.PAX_FORMAT)
    yield data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _source(source: Source, run: RunState, record: SaeRecord | None) -> dict[str, Any]:
    spec, summary = run.spec, run.summary or {}
    placed = {}
    if record is not None and record.repository_id is not None:
        placed = {"hfRepoId": record.repository_id, "hfFolderId": record.path or ""}
    return {
        "id": source.source_id,
        "modelId": source.model_id,
        "hookName": source.hook_name,
        **placed,
        "num_prompts": run.texts[0].count,
        "num_tokens_in_prompt": spec.get("length"),
        "num_tokens": summary.get("tokens"),
        "dataset": source.data_source,
    }


def _features(rows: Iterable[dict[str, Any]], source: Source) -> Iterator[dict[str, Any]]:
    for row in rows:
        histogram = row["histogram"]
        heights = histogram["counts"]
        width = histogram["max"] / len(heights) if heights else 0.0
        yield {
            **_whose(row, source),
            "maxActApprox": row["max"],
            "frac_nonzero": row["density"],
            "pos_str": [], "pos_values": [], "neg_str": [], "neg_values": [],
            "freq_hist_data_bar_heights": heights,
            "freq_hist_data_bar_values": [width * (number + 0.5) for number in range(len(heights))],
            "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [],
            "topkCosSimIndices": [], "topkCosSimValues": [],
            "hasVector": False, "vector": [],
            "hookName": source.hook_name,
        }  # fmt: skip


def _activations(rows: Iterable[dict[str, Any]], source: Source) -> Iterator[dict[str, Any]]:
    for row in rows:
        of_none = {"binMin": NOWHERE, "binMax": NOWHERE, "binContains": NOWHERE}
        for example in row["examples"]:
            yield _example(example, row, source) | of_none
        for each in row["quantiles"]:
            inside = {"binMin": each["from"], "binMax": each["to"], "binContains": each["share"]}
            for example in each["examples"]:
                yield _example(example, row, source) | inside


def _example(example: dict[str, Any], row: dict[str, Any], source: Source) -> dict[str, Any]:
    values = example["activations"]
    best = max(range(len(values)), key=values.__getitem__)
    return {
        **_whose(row, source),
        "tokens": example["tokens"],
        "values": values,
        "maxValue": values[best],
        "maxValueTokenIndex": best,
        "minValue": min(values),
        "qualifyingTokenIndex": example.get("token_index"),
        "dataSource": source.data_source,
    }


def _whose(row: dict[str, Any], source: Source) -> dict[str, Any]:
    return {"modelId": source.model_id, "layer": source.source_id, "index": str(row["feature"])}
