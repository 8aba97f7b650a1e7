"""A `Run` as it is put on record: its spec checked, its texts on disk, its variants resolved."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...domain.commands import DeleteRun, PlainText, RequestRun, Run
from ...domain.events import RunKind, RunRequested
from ...domain.measuring.specs import EvaluateSpec, ProfileSpec
from ...domain.rules.admission import attached_sae
from ...domain.rules.attachments import loaded_model
from ...domain.rules.edits import needs_encoder
from ...domain.state import State
from ...errors import BadRequestError, ForbiddenError, TextsNotFoundError
from ...runs.lists import MOST_CHARACTERS, Item, kind_of, read_file
from ...runs.runs import described
from ..answers import state_of
from ..context import context
from ..requests import wait_seconds
from ..submission import awaited, last, submit
from ..types import Answer, AnyRequest

T = TypeVar("T")

SPECS: dict[RunKind, type[EvaluateSpec | ProfileSpec]] = {"evaluate": EvaluateSpec, "profile": ProfileSpec}


class TextsSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts: in the request, in a file under `[data] texts_roots`, or uploaded."""

    texts: tuple[Annotated[str, Meta(max_length=MOST_CHARACTERS)], ...] | None = None
    file: PlainText | None = None
    texts_id: PlainText | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.texts, self.file, self.texts_id)) != 1:
            raise ValueError("give one of texts, file, texts_id")


def as_asked(value: Any, type_: type[T], where: str) -> T:
    """Strict, as every body; the error names the member."""
    try:
        return msgspec.convert(value, type_)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadRequestError(f"{where}: {str(error)[:400]}", param=where) from None


async def requested(request: AnyRequest, command: Run) -> RequestRun:
    """Raises `BadRequestError`, what the rules refuse it with, `TextsNotFoundError`, `ForbiddenError`."""
    spec = dict(command.spec)
    if command.kind not in context(request).runs.kinds:
        raise BadRequestError(f"runs of kind {command.kind} are not supported yet", param="kind")
    source = as_asked(spec.pop("texts", None), TextsSource, "spec.texts")
    checked = as_asked(spec, SPECS[command.kind], "spec")
    state = state_of(request)
    loaded_model(state)
    _readable(state, checked.sae_id, command.kind)
    run_id = f"run-{uuid.uuid4().hex[:12]}"
    kept = await context(request).runs.keep(run_id, {"texts": _items(request, source)})
    from_where = {name: value for name in ("file", "texts_id") if (value := getattr(source, name)) is not None}
    return RequestRun(
        run_id=run_id,
        kind=command.kind,
        spec=msgspec.to_builtins(checked),
        name=command.name,
        read=(checked.sae_id,),
        texts=described(kept, {"texts": from_where}),
    )


def _readable(state: State, sae_id: str, kind: str) -> None:
    """As the rules check again, before anything is written."""
    attached_sae(state, sae_id, ())
    if (sae := state.saes[sae_id].sae) is not None:
        needs_encoder(sae, sae_id, f"a run of kind {kind}")


def _items(request: AnyRequest, source: TextsSource) -> Iterator[Item]:
    """Read while they are written."""
    if source.texts is not None:
        if not source.texts:
            raise BadRequestError("give at least one text", param="texts")
        return (Item(text=text) for text in source.texts)
    if source.texts_id is not None:
        return _uploaded(request, source.texts_id)
    assert source.file is not None
    path = _resolved(source.file, context(request).texts_roots)
    return read_file(path, kind_of(path.name))


def _uploaded(request: AnyRequest, texts_id: str) -> Iterator[Item]:
    file = context(request).runs.folder.open_texts(texts_id)

    def items() -> Iterator[Item]:
        with closing(file):
            yield from file.all_texts("texts")

    return items()


def _resolved(name: str, roots: tuple[Path, ...]) -> Path:
    """The file, if it is under a root; a relative name is looked for under each."""
    asked = Path(name)
    for root in roots:
        path = (root / asked).resolve()  # an absolute name stays as it is
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    inside = any((root / asked).resolve().is_relative_to(root.resolve()) for root in roots)
    if not inside:
        raise ForbiddenError("files of texts lie under [data] texts_roots", param="file")
    raise TextsNotFoundError("there is no such file of texts", param="file")


async def accept_run(request: AnyRequest, command: Run) -> Answer:
    """Accept a run. The texts of one that is refused, or repeats an earlier one under its key, are erased again."""
    seconds = wait_seconds(request)
    wanted = await requested(request, command)
    runs, run_id = context(request).runs, ""
    try:
        accepted = await submit(request, wanted)
        run_id = last(accepted.events, RunRequested)[0].run_id
    finally:
        if run_id != wanted.run_id:
            await runs.erase(wanted.run_id)
    return await awaited(request, accepted, seconds, run_id=run_id)


async def delete_run(request: AnyRequest, command: DeleteRun) -> Answer:
    """Answered once the texts and rows are gone."""
    run = state_of(request).runs.get(command.run_id)
    accepted = await submit(request, command)
    if run is not None:
        await context(request).actor.effect_ended("run", run.request_position)
    if command.run_id not in state_of(request).runs:
        await context(request).runs.erase(command.run_id)
        await context(request).features.catch_up()
    return await awaited(request, accepted, wait_seconds(request), run_id=command.run_id)
