"""`/api/saes/{sae_id}/labels`: what features are called; imported, exported, deleted."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import anyio
import msgspec
from msgspec import Struct

from ....domain.commands import DeleteLabels, ImportLabels
from ....domain.events import LabelsDeleted, LabelsImported, LabelSource
from ....domain.rules.attachments import described, known
from ....domain.structs import filled
from ....domain.views.fields import Count, Digest, Position
from ....errors import BadRequestError, NotFoundError
from ....features import FeatureLabel
from ....features.lines import GZIP
from ...answers import state_of
from ...context import context
from ...disconnects import Streamed, followed_by
from ...operations import Query, operation
from ...submission import answered, command_for, last, submit
from ...types import Answer, AnyRequest
from ...vectors import refuse_read_only

MEDIA = ("application/x-ndjson", "application/jsonl", "application/gzip", "application/x-gzip")
"""By its first bytes a body is gzip or not, whatever it is called."""
PIECE = 256 * 1024
_NAME = r"[^\x00-\x1f\x7f@][^\x00-\x1f\x7f]{0,199}"
_SOURCE = re.compile(_NAME)
SOURCE = Query("source", {"type": "string", "pattern": f"^{_NAME}$"}, "who says so")


class ImportedLabels(Struct, frozen=True, kw_only=True):
    sae_id: str
    source: str
    labels: Count
    features: Count
    """How many features the file says something of: labels, statistics or examples."""
    sha256: Digest
    sources: tuple[LabelSource, ...]
    position: Position


class DeletedLabels(Struct, frozen=True, kw_only=True):
    sae_id: str
    sources: tuple[str, ...]
    labels: Count
    position: Position


def _source(request: AnyRequest) -> str | None:
    given = request.query_params.get("source")
    if given is not None and not _SOURCE.fullmatch(given):
        raise BadRequestError("source must be a name of 1 to 200 characters that does not begin with @", param="source")
    return given


@operation(
    "PUT", "/api/saes/{sae_id}/labels",
    'Import labels, a JSON object a line, plain or gzip: `{"feature", "label", "source"}`, or lines of Neuronpedia '
    '(explanations, features, activations, sources), or of delphi by the names of its files: `{"layers.15_latent584": '
    '"label"}`. They take the place of what the same `source` said '
    "(without one: the digest of the file). Lines that say whose they are must be this SAE's",
    media=MEDIA, query=(Query("source", SOURCE.schema, "of lines that name none (default: the file's digest)"),),
    returns=ImportedLabels, command=True, max_body=2**53, tag="saes",
    errors=("sae_not_found", "sae_in_use", "sae_invalid", "sae_unsupported", "sae_download_failed", "sae_incompatible",
            "feature_out_of_range", "too_large", "unsupported_media_type"),
)  # fmt: skip
async def put_labels(request: AnyRequest) -> Answer:
    refuse_read_only(request)
    sae_id, source = request.path_params["sae_id"], _source(request)
    described(known(state_of(request), sae_id))
    features = context(request).features
    coming = await features.receive(request.stream())
    try:
        counts = await features.counted(coming, sae_id, source)
        async with features.changing:
            await features.keep(coming, counts)
            try:
                accepted = await submit(request, filled(ImportLabels, counts, sae_id=sae_id))
            finally:
                await features.follow()  # also removes a file that was refused
    finally:
        await anyio.Path(coming).unlink(missing_ok=True)
    done, event = last(accepted.events, LabelsImported)
    return answered(request, filled(ImportedLabels, done, event), upto=event.position)


@operation("DELETE", "/api/saes/{sae_id}/labels", "Delete the labels of a source, with its statistics and examples",
           query=(Query("source", SOURCE.schema, "whose (default: all that were imported)"),),
           returns=DeletedLabels, errors=("sae_not_found", "not_found"), command=True, tag="saes")  # fmt: skip
async def delete_labels(request: AnyRequest) -> Answer:
    features, source = context(request).features, _source(request)
    async with features.changing:
        accepted = await submit(request, command_for(request, DeleteLabels, source=source))
        await features.follow()
    done, event = last(accepted.events, LabelsDeleted)
    return answered(request, filled(DeletedLabels, done, event), upto=event.position)


@operation("GET", "/api/saes/{sae_id}/labels",
           'Export labels, `{"feature", "label", "source"}` a line; imported again they come to the same. '
           "`format=sent`: the lines of one source's file, as they were sent",
           query=(Query("source", SOURCE.schema, "only these"),
                  Query("format", {"type": "string", "enum": ["labels", "sent"]}, "default: labels")),
           answers=((200, "application/x-ndjson"),), items=FeatureLabel,
           errors=("sae_not_found", "not_found", "disk_full"), tag="saes")  # fmt: skip
async def get_labels(request: AnyRequest) -> Answer:
    sae_id, source = request.path_params["sae_id"], _source(request)
    state = state_of(request)
    known(state, sae_id)
    mine = [each for each in state.labels.get(sae_id, ()) if source in (None, each.source)]
    if source is not None and not mine:
        raise NotFoundError(f"{sae_id} has no labels of {source}", source=source)
    wanted = request.query_params.get("format", "labels")
    if wanted not in ("labels", "sent"):
        raise BadRequestError("format must be labels or sent", param="format")
    if wanted == "labels":
        lines = _labels(request, sae_id, source)
    else:
        files = sorted({each.sha256 for each in mine})
        if len(files) != 1:
            raise BadRequestError(f"name a source: there are {len(files)} files", param="source")
        path = context(request).features.kept(files[0])
        if not await anyio.Path(path).is_file():
            raise NotFoundError(f"the file {files[0]} is gone")
        lines = _sent(path)
    first = await anext(lines, b"")
    return Streamed(followed_by(first, lines), media_type="application/x-ndjson")


async def _labels(request: AnyRequest, sae_id: str, source: str | None) -> AsyncIterator[bytes]:
    async for page in context(request).features.exported(sae_id, source):
        yield b"".join(msgspec.json.encode(each) + b"\n" for each in page)


async def _sent(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as plain:
        zipped = plain.read(2) == GZIP
        plain.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=plain) if zipped else plain  # type: ignore[assignment]
        while piece := await anyio.to_thread.run_sync(file.read, PIECE):
            yield piece
