"""`/api/log/explain`: what was active for an answer, with the check of the log, as `log explain` prints it."""

from __future__ import annotations

from msgspec import Struct

from ....domain.views.explained import ExplainedGeneration
from ....domain.views.explanation import Explaining
from ....domain.views.naming import Named
from ....errors import BadRequestError, NotFoundError
from ....ports import Verification
from ...answers.long import long_answer
from ...context import context
from ...disconnects import heard
from ...operations import Query, operation
from ...requests import MAX_POSITION, whole_number
from ...types import Answer, AnyRequest
from .moments import POSITION

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_OF = 128


class ExplainedAnswers(Struct, frozen=True, kw_only=True):
    """The answers that were asked for, in the order in which they began, and the log that says so."""

    generations: tuple[ExplainedGeneration, ...]
    log: Verification


@operation("GET", "/api/log/explain", "What was active for an answer, and whether the log that says so is sound",
           query=(Query("of", {"type": "string", "minLength": 1, "maxLength": MAX_OF},
                        "id of a generation, its tag, or the position of its first or last event", required=True),
                  Query("after", POSITION, "only those that began after this position"),
                  Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
                        f"at most this many, of one tag (default: {DEFAULT_LIMIT})")),
           returns=ExplainedAnswers, errors=("not_found",), tag="log")  # fmt: skip
async def get_explanation(request: AnyRequest) -> Answer:
    """A position counts before an id, an id before a tag. The next page is `after` the `position` of the last."""
    of = request.query_params.get("of") or ""
    if not 1 <= len(of) <= MAX_OF:
        raise BadRequestError(f"of must have 1 to {MAX_OF} characters", param="of")
    after = whole_number(request, "after", default=0, low=0, high=MAX_POSITION)
    limit = whole_number(request, "limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    log, finder = context(request).log, context(request).finder
    until = log.head.position
    async with heard(request), context(request).walks.taken():
        named = await finder.named(of, until)
        if named.found is None:
            raise NotFoundError(f"the log has no generation {of}{lost(named)}", of=of)
        asked = {**named.found, "after": after, "limit": limit, "live": context(request).actor.started}
        wanted = await finder.explained(lambda: Explaining(**asked), until)
        verification = await log.verify(full=False)
        return await long_answer(
            request, lambda: ExplainedAnswers(generations=tuple(wanted.views.values()), log=verification)
        )
    raise AssertionError("the client left, which is raised")


def lost(named: Named) -> str:
    """A hint at the beginnings of texts that say nothing any more."""
    return f"; the payloads of events {', '.join(map(str, named.erased))} were erased" if named.erased else ""
