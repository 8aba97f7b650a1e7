"""Features that are reported before and after the edits at each position of a generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..domain.events import GenerationStarted
from ..domain.refs import ActiveSae
from ..ports import Watch

MOST_FEATURES = 64
"""That a request names besides its edits; a Monitor of more says nothing of what is wanted here."""


class NamedFeature(NamedTuple):
    sae: ActiveSae
    feature: int


def detail_watches(
    started: GenerationStarted, named: Sequence[NamedFeature], monitored: Sequence[Watch]
) -> tuple[Watch, ...]:
    """One for each SAE: the features that the generation's edits, their conditions and `stop_when` name, those that the
    request names besides, and those of the monitored SAEs whose Monitor names some."""
    found: dict[int, tuple[ActiveSae, dict[int, None]]] = {}
    for sae, feature in (*_of(started), *named, *_monitored(monitored)):
        found.setdefault(sae.attach_position, (sae, {}))[1][feature] = None
    return tuple(Watch(sae=sae, features=tuple(features)) for sae, features in found.values())


def _of(started: GenerationStarted) -> Iterator[NamedFeature]:
    for sae in started.intervention:
        for edit in sae.steering:
            yield NamedFeature(sae, edit.feature)
            if edit.when is not None:
                yield NamedFeature(sae, edit.when.feature)
    if started.stop_when is not None:
        yield NamedFeature(started.stop_when.sae, started.stop_when.feature)


def _monitored(watches: Sequence[Watch]) -> Iterator[NamedFeature]:
    for watch in watches:
        if watch.features is not None and len(watch.features) <= MOST_FEATURES:
            yield from (NamedFeature(watch.sae, feature) for feature in watch.features)
