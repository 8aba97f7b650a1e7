"""The sources of labels, from event to event."""

from __future__ import annotations

from .. import events as ev
from ..events import Draft
from ..state import LabelFile

Sources = dict[str, tuple[LabelFile, ...]]


def labels_after(
    labels: Sources, event: Draft, payload: ev.LabelsImported | ev.LabelsDeleted | ev.SaeDeleted
) -> Sources:
    mine = labels.get(payload.sae_id, ())
    match payload:
        case ev.LabelsImported():
            replaced = {each.source for each in payload.sources}
            new = (
                LabelFile(
                    source=each.source,
                    sha256=payload.sha256,
                    default_source=payload.source,
                    labels=each.labels,
                    features=each.features,
                    position=event.position,
                )
                for each in payload.sources
            )
            left = (*(each for each in mine if each.source not in replaced), *new)
        case ev.LabelsDeleted():
            left = tuple(each for each in mine if each.source not in payload.sources)
        case ev.SaeDeleted():
            left = ()
    others = {sae_id: files for sae_id, files in labels.items() if sae_id != payload.sae_id}
    return {**others, payload.sae_id: left} if left else others
