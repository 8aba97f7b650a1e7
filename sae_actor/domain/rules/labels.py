"""The rules of labels: whose they are, and which sources there may be."""

from __future__ import annotations

from ... import errors
from .. import events as ev
from ..commands import DeleteLabels, ImportLabels
from ..state import State
from ..structs import filled
from .attachments import described, known

MAX_SOURCES = 256
"""Of one SAE."""


def import_labels(command: ImportLabels, state: State) -> list[ev.Payload]:
    """The API has read the file and keeps it."""
    record = known(state, command.sae_id)
    described(record)
    if record.status == "deleting":
        raise errors.SAEInUseError(f"{command.sae_id} is being deleted", sae_id=command.sae_id)
    new = {each.source for each in command.sources}
    others = [each for each in state.labels.get(command.sae_id, ()) if each.source not in new]
    if len(others) + len(new) > MAX_SOURCES:
        raise errors.BadRequestError(f"an SAE has labels of at most {MAX_SOURCES} sources", param="source")
    return [filled(ev.LabelsImported, command)]


def delete_labels(command: DeleteLabels, state: State) -> list[ev.Payload]:
    known(state, command.sae_id)
    mine = state.labels.get(command.sae_id, ())
    gone = tuple(each for each in mine if command.source in (None, each.source))
    if command.source is not None and not gone:
        raise errors.NotFoundError(f"{command.sae_id} has no labels of {command.source}", source=command.source)
    labels = sum(each.labels for each in gone)
    return [ev.LabelsDeleted(sae_id=command.sae_id, sources=tuple(each.source for each in gone), labels=labels)]
