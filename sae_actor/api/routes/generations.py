"""`/api/generations`: what was active for each answer, from the log, as in `log explain`."""

from __future__ import annotations

from typing import Any

from ...domain.views.explained import ExplainedGeneration, ExplainedGenerations
from ...domain.views.explanation import Explaining
from ...errors import NotFoundError
from ..answers import answer
from ..answers.long import long_answer
from ..context import context, user_of
from ..disconnects import heard
from ..operations import Query, operation
from ..requests import MAX_POSITION, whole_number
from ..types import Answer, AnyRequest
from .audit.moments import POSITION

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000


@operation("GET", "/api/generations", "What was active for each answer",
           query=(Query("tag", {"type": "string"}, "only those with this tag"),
                  Query("after", POSITION, "only those that began after this position"),
                  Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
                        f"at most this many (default: {DEFAULT_LIMIT})")),
           returns=ExplainedGenerations, users=True, tag="log")  # fmt: skip
async def get_generations(request: AnyRequest) -> Answer:
    """In the order in which they began; the next page is `after` the `position` of the last."""
    wanted = await _found(
        request,
        tag=request.query_params.get("tag"),
        after=whole_number(request, "after", default=0, low=0, high=MAX_POSITION),
        limit=whole_number(request, "limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT),
    )
    async with heard(request):
        return await long_answer(request, lambda: ExplainedGenerations(generations=tuple(wanted.views.values())))
    raise AssertionError("the client left, which is raised")


@operation("GET", "/api/generations/{generation_id}", "What was active for one answer",
           returns=ExplainedGeneration, errors=("not_found",), users=True, tag="log")  # fmt: skip
async def get_generation(request: AnyRequest) -> Answer:
    generation_id: str = request.path_params["generation_id"]
    wanted = await _found(request, generation_id=generation_id)
    view = next(iter(wanted.views.values()), None)
    if view is None:
        raise NotFoundError(f"the log has no generation {generation_id[:80]}", generation_id=generation_id[:80])
    return answer(request, view)


async def _found(request: AnyRequest, **wanted: Any) -> Explaining:
    """In the log as it is now; of a user only the user's own."""
    found = {**wanted, "principal": user_of(request), "live": context(request).actor.started}
    finder, until = context(request).finder, context(request).log.head.position
    async with heard(request), context(request).walks.taken():
        return await finder.explained(lambda: Explaining(**found), until)
