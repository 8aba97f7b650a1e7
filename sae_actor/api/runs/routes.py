"""`/api/runs`: what there is, what each found."""

from __future__ import annotations

from collections.abc import Generator

from litestar import Response

from ...domain.measuring.state import RunState
from ...domain.rules.runs import known
from ...domain.views.runs import RunList, RunView, run_view
from ...errors import BadRequestError, NotFoundError
from ...runs.exports.neuronpedia import archive
from ...runs.exports.saebench import CoreResult, saebench
from ...runs.job import in_thread
from ...runs.store import RunFile
from ..answers import answer, state_of
from ..context import context
from ..disconnects import Streamed
from ..operations import Query, operation
from ..requests import MAX_POSITION, whole_number
from ..types import Answer, AnyRequest
from . import tables

KINDS = ("evaluate", "profile", "contrast", "sweep")
STATES = ("waiting", "running", "completed", "failed", "cancelled")
VIEWS = ("run", "saebench")
FORMATS = ("ndjson", "csv", "parquet", "neuronpedia")
TYPES = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "neuronpedia": "application/x-tar",
}
_AFTER = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}


@operation("GET", "/api/runs", "The runs, in the order in which they were asked for",
           query=(Query("kind", {"type": "string", "enum": [*KINDS]}, "only those of this kind"),
                  Query("state", {"type": "string", "enum": [*STATES]}, "only those in this state"),
                  Query("after", _AFTER, "only those that were asked for after this position")),
           returns=RunList, tag="runs")  # fmt: skip
async def get_runs(request: AnyRequest) -> Answer:
    kind, wanted = _one_of(request, "kind", KINDS), _one_of(request, "state", STATES)
    after = whole_number(request, "after", default=0, low=0, high=MAX_POSITION)
    runs = [run for run in state_of(request).runs.values() if run.request_position > after]
    views = [await _view(request, run) for run in runs if kind in (None, run.kind)]
    return answer(request, RunList(runs=tuple(view for view in views if wanted in (None, view.state))))


@operation("GET", "/api/runs/{run_id}",
           "One run: its state, and what it found. `format=saebench`: a completed evaluation as SAEBench's `core` "
           "writes it, valid against its schema; digests of weights, texts and environments, and definitions of what "
           "SAEBench computes otherwise, are in `eval_result_unstructured`",
           query=(Query("format", {"type": "string", "enum": [*VIEWS]}, "run (the default) or saebench"),),
           returns=(RunView, CoreResult), errors=("run_not_found", "not_found"), tag="runs")  # fmt: skip
async def get_run(request: AnyRequest) -> Answer:
    run = _run(request)
    if (_one_of(request, "format", VIEWS) or "run") == "run":
        return answer(request, await _view(request, run))
    if run.kind != "evaluate":
        raise BadRequestError("runs of kind evaluate alone have a result of SAEBench's", param="format")
    if run.status != "completed":
        raise NotFoundError("the run is not completed, and has no result yet", run_id=run.run_id)
    record = None if not run.saes else state_of(request).saes.get(run.saes[0].sae_id)
    return answer(request, await in_thread(lambda: saebench(context(request).runs.folder, run, record)))


@operation("GET", "/api/runs/{run_id}/rows",
           "The rows of a run, as they are durable, also before it is done. Of a sweep: `prompt` (its index), "
           "`variant`, `seed`, `text`, `finish_reason`, `generation_id`; `ce_unsteered`, the mean of -log p of the new "
           "tokens, the end token too, in the model without an intervention; `activations`, of each feature the mean "
           "over these tokens under the variant, before the SAE's own edits and without sinks; "
           "`continuation_logprobs`, the sum for each continuation after the prompt under the variant; `receipt`. Of a "
           "text that was redacted `prompt`, `variant`, `seed` and `redacted` alone. Of a contrast: what "
           "`/api/contrast` says of a feature",
           query=(Query("after", _AFTER, "only rows after this many"),
                  Query("format", {"type": "string", "enum": [*FORMATS]}, "ndjson (the default), csv or parquet; in "
                        "csv and parquet lists and objects are JSON. Parquet needs pyarrow next to the service. "
                        "neuronpedia: a profile as a tar of the files of Neuronpedia's bulk downloads, "
                        "`features/batch-N.jsonl.gz` and `activations/batch-N.jsonl.gz`; labels import both")),
           answers=tuple((200, kind.partition(";")[0]) for kind in TYPES.values()),
           errors=("run_not_found", "sae_unsupported"), tag="runs")  # fmt: skip
async def get_rows(request: AnyRequest) -> Answer:
    run = _run(request)
    after = whole_number(request, "after", default=0, low=0, high=MAX_POSITION)
    kind = _one_of(request, "format", FORMATS) or "ndjson"
    folder = context(request).runs.folder
    await in_thread(lambda: folder.open(run.run_id).close())  # refuses before the answer begins

    def open_file() -> RunFile:
        return folder.open(run.run_id)

    if kind == "parquet":
        return Response(content=await tables.parquet_table(open_file, after), media_type=TYPES[kind])
    if kind == "neuronpedia":
        return Streamed(tables.in_pieces(_archive(request, run, after)), TYPES[kind])
    rows = tables.ndjson(open_file, after) if kind == "ndjson" else tables.csv_table(open_file, after)
    return Streamed(rows, TYPES[kind])


def _archive(request: AnyRequest, run: RunState, after: int) -> Generator[bytes, None, None]:
    if run.kind != "profile":
        raise BadRequestError("runs of kind profile alone have what Neuronpedia's files hold", param="format")
    record = state_of(request).saes.get(run.saes[0].sae_id)
    return archive(context(request).runs.folder, run, record, after)


def _run(request: AnyRequest) -> RunState:
    return known(state_of(request), request.path_params["run_id"])


async def _view(request: AnyRequest, run: RunState) -> RunView:
    runs = context(request).runs
    return run_view(run, state_of(request), rows=await runs.rows(run), paused=runs.paused(run))


def _one_of(request: AnyRequest, name: str, values: tuple[str, ...]) -> str | None:
    given = request.query_params.get(name)
    if given is not None and given not in values:
        raise BadRequestError(f"{name} must be one of {', '.join(values)}", param=name)
    return given
