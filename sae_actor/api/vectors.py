"""Vectors are kept: written, then put on record."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from ..domain.commands import KeepVectors
from ..domain.events import DownloadCompleted, MadeFrom
from ..domain.rules.attachments import known
from ..domain.views.saes import sae_view
from ..errors import ReadOnlyError
from ..ports import NewVectors
from .answers import state_of
from .context import context
from .problems import recorded_error
from .requests import MAX_WAIT
from .submission import accepted_answer, answered, last, submit
from .types import Answer, AnyRequest

VectorsName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z", description="begins the `sae_id`, before 8 digits of a digest"
    ),
]
KEPT = ((201, "application/json"), (200, "application/json"), (202, "application/json"))
"""Answers of a route that keeps vectors: new, there already, not done yet."""


def refuse_read_only(request: AnyRequest) -> None:
    """`ReadOnlyError` before anything is written or run."""
    actor = context(request).actor
    if actor.read_only is not None:
        raise ReadOnlyError(actor.read_only)


async def keep(request: AnyRequest, vectors: NewVectors, made_from: MadeFrom) -> Answer:
    """Write the vectors and put them on record: the SAE, with 200 where they were there already."""
    refuse_read_only(request)
    sae_id = await context(request).hub.keep_vectors(vectors)
    accepted = await submit(request, KeepVectors(sae_id=sae_id, made_from=made_from))
    outcome = await context(request).actor.outcome(accepted.command_id, MAX_WAIT, accepted)
    if outcome.error is not None:
        raise recorded_error(outcome.error)
    if outcome.status == "accepted":
        return accepted_answer(request, accepted, sae_id)
    done, event = last(outcome.events, DownloadCompleted)
    state = state_of(request)
    view = sae_view(known(state, sae_id), state)
    return answered(request, view, upto=event.position, status=200 if done.reused else 201)
