"""`/api/texts`: lists of texts, streamed to disk; the same texts have the same id."""

from __future__ import annotations

import uuid
from contextlib import closing

from msgspec import Struct

from ...domain.views.fields import Count, Digest
from ...errors import BadRequestError, UnsupportedMediaTypeError
from ...ports.durability import receive
from ...runs.job import in_thread
from ...runs.lists import read_file
from ...runs.store import TextList
from ..answers import answer
from ..context import context
from ..operations import operation
from ..types import Answer, AnyRequest
from ..vectors import refuse_read_only

KINDS = {
    "text/plain": "txt",
    "application/x-ndjson": "ndjson",
    "application/vnd.apache.parquet": "parquet",
}


class UploadedTexts(Struct, frozen=True, kw_only=True):
    texts_id: str
    sha256: Digest
    count: Count


@operation("PUT", "/api/texts",
           "Keep a list of texts for runs. `text/plain`: a text a line; `application/x-ndjson`: an object a line, with "
           "`text` and perhaps `label`; Parquet: columns `text` and perhaps `label`. The id is that of the texts, in "
           "whatever form they came",
           returns=UploadedTexts, errors=("unsupported_media_type", "too_large", "disk_full", "read_only",
                                          "sae_unsupported"),
           media=tuple(KINDS), max_body=2**53, tag="runs")  # fmt: skip
async def put_texts(request: AnyRequest) -> Answer:
    asked = context(request)
    refuse_read_only(request)
    kind = KINDS.get(request.headers.get("content-type", "").partition(";")[0].strip().lower())
    if kind is None:
        raise UnsupportedMediaTypeError(f"send {', '.join(KINDS)}")
    folder, name = asked.runs.folder, uuid.uuid4().hex
    coming = folder.incoming / name
    await receive(request.stream(), coming, asked.upload_bytes)
    try:
        found = await in_thread(lambda: folder.keep_texts(read_file(coming, kind), name))
    finally:
        coming.unlink(missing_ok=True)
    if found.count == 0:
        folder.forget_texts(found.texts_id)
        raise BadRequestError("there is no text in the body", param="texts")
    return answer(request, _view(found))


@operation("GET", "/api/texts/{texts_id}", "What is known of uploaded texts",
           returns=UploadedTexts, errors=("texts_not_found",), tag="runs")  # fmt: skip
async def get_texts(request: AnyRequest) -> Answer:
    texts_id = request.path_params["texts_id"]

    def look() -> TextList:
        with closing(context(request).runs.folder.open_texts(texts_id)) as file:
            return file.described("texts")

    return answer(request, _view(await in_thread(look)))


@operation("DELETE", "/api/texts/{texts_id}", "Erase uploaded texts; runs keep the copy that they were asked with",
           returns=UploadedTexts, errors=("texts_not_found", "read_only"), tag="runs")  # fmt: skip
async def delete_texts(request: AnyRequest) -> Answer:
    """The answer is what was erased."""
    asked, texts_id = context(request), request.path_params["texts_id"]
    refuse_read_only(request)

    def erase() -> TextList:
        with closing(asked.runs.folder.open_texts(texts_id)) as file:
            found = file.described("texts")
        asked.runs.folder.forget_texts(texts_id)
        return found

    return answer(request, _view(await in_thread(erase)))


def _view(found: TextList) -> UploadedTexts:
    return UploadedTexts(texts_id=found.texts_id, sha256=found.sha256, count=found.count)
