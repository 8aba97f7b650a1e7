"""The rules of SAEs on disk: download, cancel, import, delete."""

from __future__ import annotations

from msgspec.structs import replace

from ... import errors
from .. import events as ev
from ..commands import CancelDownload, Delete, Download, Import, KeepVectors
from ..events import Problem
from ..reports import HubSae
from ..state import SaeRecord, State
from ..structs import filled
from ..weights import import_id_of, names, sae_id_of
from .attachments import known


def download(command: Download, state: State) -> list[ev.Payload]:
    sae_id = sae_id_of(command.repository_id, command.path, command.revision)
    return _requested(filled(ev.DownloadRequested, command, sae_id=sae_id), state)


def import_(command: Import, state: State, digest: str | None = None) -> list[ev.Payload]:
    """The API has already resolved `command.path` and checked that it lies under an import root. digest: of the weights
    there; None where none could be found."""
    sae_id = import_id_of(command.path, command.layer, digest)
    if digest is not None:
        # Older logs made ids of paths.
        known_as = (each.sae_id for each in state.saes.values() if _is_at(each, command, digest))
        sae_id = next(known_as, sae_id)
    return _requested(filled(ev.DownloadRequested, command, sae_id=sae_id, source="import"), state)


def _is_at(record: SaeRecord, command: Import, digest: str) -> bool:
    """Whether it was imported from there, with these weights."""
    there = (record.source, record.path, record.layer) == ("import", command.path, command.layer)
    if not there or record.status != "cached":
        return False
    return record.has_weights(digest) or digest in (file.sha256 for file in record.files)


def keep_vectors(command: KeepVectors, state: State) -> list[ev.Payload]:
    """The API has already written their file."""
    wanted = filled(ev.DownloadRequested, command, source="vectors", path=command.sae_id)
    return _requested(wanted, state)


def _requested(wanted: ev.DownloadRequested, state: State) -> list[ev.Payload]:
    record = state.saes.get(wanted.sae_id)
    if record is None:
        return [wanted]
    if record.status == "deleting":
        raise errors.SAEInUseError(f"{wanted.sae_id} is being deleted", sae_id=wanted.sae_id)
    if record.status == "downloading":
        return [replace(wanted, joined=record.request_position)]
    moved = wanted.source == "import" and wanted.path != record.path
    if wanted.force or moved:
        # An attached SAE keeps the weights it has; one that is being attached or detached needs its files unchanged.
        _settled(state, wanted.sae_id)
    if record.status == "cached" and record.sae is not None and not (wanted.force or moved):
        return [
            replace(wanted, reused=True),
            filled(
                ev.DownloadCompleted,
                record,
                request_position=state.position + 1,
                weights_files=record.weights,
                reused=True,
            ),
        ]
    return [wanted]


def cancel(command: CancelDownload, state: State) -> list[ev.Payload]:
    record = known(state, command.sae_id)
    if record.status != "downloading":
        raise errors.SAENotDownloadingError(
            f"nothing to cancel: {command.sae_id} is {record.status}", sae_id=command.sae_id
        )
    return [ev.DownloadCancelled(request_position=record.request_position, sae_id=record.sae_id)]


def downloaded(at: int, found: HubSae, state: State) -> list[ev.Payload]:
    record = _under_way(state, at)
    if record is None:
        return []
    if names(record.weights_sha256, found.weights_files):
        # The same weights as before keep the digest that the log knows them by, in whichever form that is.
        found = replace(found, weights_sha256=record.weights_sha256)
    return [filled(ev.DownloadCompleted, found, record)]


def failed(at: int, error: Problem, state: State) -> list[ev.Payload]:
    record = _under_way(state, at)
    if record is None:
        return []
    failure = ev.DeleteFailed if record.status == "deleting" else ev.DownloadFailed
    return [failure(request_position=at, sae_id=record.sae_id, error=error)]


def delete(command: Delete, state: State) -> list[ev.Payload]:
    record = known(state, command.sae_id)
    _not_in_use(state, command.sae_id)
    if record.status in ("downloading", "deleting"):
        why = f"{command.sae_id} cannot be deleted while it is {record.status}"
        raise errors.SAEInUseError(why, sae_id=command.sae_id)
    return [ev.DeleteRequested(sae_id=command.sae_id)]


def _settled(state: State, sae_id: str) -> None:
    moving = next((a for a in state.attachments if a.sae_id == sae_id and a.status in ("attaching", "detaching")), None)
    if moving is not None:
        why = f"{sae_id} cannot be fetched again while it is {moving.status}"
        raise errors.SAEInUseError(why, sae_id=sae_id)


def _not_in_use(state: State, sae_id: str) -> None:
    in_use = next((a for a in state.attachments if a.sae_id == sae_id and a.status != "failed"), None)
    if in_use is not None:
        why = f"{sae_id} cannot be deleted while it is {in_use.status}: detach it first"
        raise errors.SAEInUseError(why, sae_id=sae_id)


def deleted(at: int, freed: int, state: State) -> list[ev.Payload]:
    record = _under_way(state, at)
    return [] if record is None else [ev.SaeDeleted(request_position=at, sae_id=record.sae_id, freed_bytes=freed)]


def _under_way(state: State, at: int) -> SaeRecord | None:
    """The SAE whose files an open request is about."""
    under_way = (each for each in state.saes.values() if each.status in ("downloading", "deleting"))
    return next((each for each in under_way if each.request_position == at), None)
