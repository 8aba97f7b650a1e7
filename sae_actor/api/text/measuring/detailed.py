"""Details of an answer: what the intervention did at each position, with the features that are watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Protocol, TypeAlias

from msgspec import Meta, Struct

from ....domain.refs import Feature, SaeId
from ....domain.rules.admission import read_sae
from ....errors import BadRequestError
from ....generations import MOST_FEATURES, NamedFeature
from ....ports import Finished, PositionDetails, Token, labelled_changes
from ...answers import state_of
from ...context import context
from ...types import AnyRequest


class FeatureOfSae(Struct, frozen=True, forbid_unknown_fields=True):
    """A feature of one of several SAEs."""

    feature: Feature
    sae_id: SaeId | None = None
    """null: the only attached SAE that can be read."""


NamedFeatures: TypeAlias = Annotated[tuple[Feature | FeatureOfSae, ...], Meta(min_length=1, max_length=MOST_FEATURES)]
Labels: TypeAlias = Mapping[str, Mapping[int, str]]
"""SAE → labels of its features."""


class _Extension(Protocol):
    """The extension object of a request."""

    @property
    def details(self) -> bool: ...

    @property
    def details_of(self) -> NamedFeatures | None: ...


def detailed(request: AnyRequest, own: _Extension, name: str = "sae") -> list[NamedFeature] | None:
    """As in `TokenOptions`. `name`: of the object. Raises as `read_sae`, and `BadRequestError` for `details_of` without
    `details`."""
    if not own.details:
        if own.details_of is not None:
            raise BadRequestError(f"{name}.details_of: only with {name}.details", param=f"{name}.details_of")
        return None
    found = []
    for each in own.details_of or ():
        one = FeatureOfSae(each) if isinstance(each, int) else each
        sae = read_sae(state_of(request), one.sae_id, (one.feature,), f"{name}.details_of")
        found.append(NamedFeature(sae, one.feature))
    return found


async def labels_of(request: AnyRequest, sae_ids: Iterable[str]) -> Labels:
    """Of these SAEs and every attached one."""
    wanted = dict.fromkeys((*sae_ids, *(each.sae_id for each in state_of(request).attached)))
    return {sae_id: await context(request).features.labels(sae_id) for sae_id in wanted}


def positions_of(parts: Sequence[Token | Finished], labels: Labels) -> tuple[PositionDetails, ...]:
    """What these bring, with labels."""
    return labelled_changes(tuple(each for part in parts for each in part.details), labels)
