"""`/api/saes/{sae_id}/features`: the features of an SAE, by label and statistics, and one of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, cast, get_args

from msgspec import Meta, Struct

from ....domain.rules.admission import attached_sae
from ....domain.rules.attachments import known
from ....domain.structs import filled
from ....errors import BadRequestError
from ....features import Example, FeatureLabel, FeaturePage, Sort
from ....features.last_steered import SteeredAt
from ....ports import NearFeature, TokenWeight
from ...answers import answer, state_of
from ...context import context, device
from ...disconnects import heard
from ...operations import Query, operation
from ...requests import whole_number
from ...types import Answer, AnyRequest

SORTS: tuple[str, ...] = get_args(Sort)
MAX_LIMIT = 1000
MAX_WORDS = 500
MAX_FEATURE = 2**31 - 1


class Feature(Struct, frozen=True, kw_only=True):
    """What the weights, the unembedding, the SAE's folder, imports and measurements say of a feature."""

    sae_id: str
    feature: int
    decoder_norm: float
    bias: float | None
    threshold: float | None
    nearest: tuple[NearFeature, ...]
    promoted: tuple[TokenWeight, ...]
    suppressed: tuple[TokenWeight, ...]
    label: str | None
    labels: tuple[FeatureLabel, ...]
    """Of every source, the one that counts first."""
    max_activation: float | None
    density: float | None
    top_tokens: tuple[str, ...]
    examples: tuple[Example, ...]
    last_steered: SteeredAt | None
    profile: Annotated[
        dict[str, Any] | None,
        Meta(description="its row in the newest profile of these weights at this hook point, with examples"),
    ]


@operation("GET", "/api/saes/{sae_id}/features",
           "Features of an SAE of which something is known. `q`: words, or their beginnings, of label and top tokens; "
           "`after`: the last feature of the page before",
           query=(Query("q", {"type": "string", "maxLength": MAX_WORDS}, "words that all occur"),
                  Query("sort", {"enum": list(SORTS), "type": "string"},
                        "by number (`index`), by the largest `density` or `max`, or by `label`"),
                  Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, "at most this many (50)"),
                  Query("after", {"type": "integer", "minimum": 0, "maximum": MAX_FEATURE}, "a feature")),
           returns=FeaturePage, errors=("sae_not_found", "disk_full"), users=True, tag="saes")  # fmt: skip
async def list_features(request: AnyRequest) -> Answer:
    sae_id, given = request.path_params["sae_id"], request.query_params
    known(state_of(request), sae_id)
    sort, words = given.get("sort", "index"), given.get("q", "")
    if sort not in SORTS:
        raise BadRequestError(f"sort must be one of {', '.join(SORTS)}", param="sort")
    if len(words) > MAX_WORDS or "\0" in words:
        raise BadRequestError(f"q must have at most {MAX_WORDS} characters", param="q")
    limit = whole_number(request, "limit", default=50, low=1, high=MAX_LIMIT)
    after = whole_number(request, "after", default=0, low=0, high=MAX_FEATURE) if "after" in given else None
    features = context(request).features
    async with heard(request):
        page = await features.search(sae_id, words, sort=cast("Sort", sort), limit=limit, after=after)
    return answer(request, page)


@operation("GET", "/api/saes/{sae_id}/features/{feature}",
           "One feature of an attached SAE: norm of its decoder row, bias, threshold, nearest features by the cosine "
           "of their decoder rows, tokens that it promotes and suppresses through the unembedding (the final norm left "
           "out); labels, statistics and examples that were imported, measured or lie next to the weights; the last "
           "event that steered it; and what the newest profile found: its row. `max_activation`, `density` and "
           "examples are the newest profile's where the SAE was trained, else an import's, else those of its folder",
           returns=Feature,
           errors=("sae_not_found", "sae_not_attached", "feature_out_of_range", "sae_invalid", "read_only",
                   "mailbox_full", "disk_full"),
           users=True, tag="saes")  # fmt: skip
async def get_feature(request: AnyRequest) -> Answer:
    sae_id, written = request.path_params["sae_id"], request.path_params["feature"]
    if not re.fullmatch(r"[0-9]{1,10}", written):
        raise BadRequestError("a feature is a whole number, 0 or above", param="feature")
    engine, service = device(request), context(request)
    number = int(written)
    sae = attached_sae(state_of(request), sae_id, (number,))
    async with heard(request), service.looks.taken():
        details = await engine.feature(sae.attach_position, number)
        profile = None if service.runs is None else await service.runs.profiles.row(sae.attach_position, number)
    async with heard(request):
        found = await service.features.feature(sae_id, number)
        async with service.walks.taken():
            steered = await service.steered.of(service.log, sae_id, number)
    caller: Any = request.scope.get("caller")
    if steered is not None and steered.generation_id is not None and caller is not None and caller.role == "user":
        steered = None  # users see no generations of others
    measured = found.statistics
    largest = details.max_activation if measured.max is None else measured.max
    density = details.density if measured.density is None else measured.density
    if profile is not None:
        largest = profile["max"] if largest is None else largest
        density = profile["density"] if density is None else density
    view = filled(
        Feature,
        found,
        details,
        sae_id=sae_id,
        label=found.label or details.label,
        max_activation=largest,
        density=density,
        top_tokens=found.top_tokens or details.top_tokens,
        last_steered=steered,
        profile=profile,
    )
    return answer(request, view)
