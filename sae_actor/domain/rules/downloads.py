"""The rules of SAEs on disk: download, cancel, import, delete."""

from __future__ import annotations

from msgspec.structs import replace

from ... import errors
from .. import events as ev
from ..commands import CancelDownload, Delete, Download, Import
from ..refs import import_id_of, sae_id_of
from ..state import SaeRecord, State
from ..structs import filled
from ..weights import names
from .attachments import known


def download(command: Download, state: State) -> list[ev.Payload]:
    sae_id = sae_id_of(command.repository_id, command.path, command.revision)
    return _requested(filled(ev.DownloadRequested, command, sae_id=sae_id), state)


def import_(command: Import, state: State) -> list[ev.Payload]:
    """`command.path` is resolved already, and lies under an import root: the edge saw to both."""
    sae_id = import_id_of(command.path)
    return _requested(ev.DownloadRequested(sae_id=sae_id, source="import", path=command.path), state)


def _requested(wanted: ev.DownloadRequested, state: State) -> list[ev.Payload]:
    record = state.saes.get(wanted.sae_id)
    if record is None:
        return [wanted]
    if record.status == "deleting":
        raise errors.SAEInUseError(f"{wanted.sae_id} is being deleted", sae_id=wanted.sae_id)
    if record.status == "downloading":
        return [replace(wanted, joined=record.request_position)]
    if wanted.force:
        # One that is attached keeps running on what it has; one on its way in or out needs its files as they are.
        _settled(state, wanted.sae_id)
    if record.status == "cached" and record.sae is not None and not wanted.force:
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


def downloaded(report: ev.DownloadCompleted | ev.DownloadFailed, state: State) -> list[ev.Payload]:
    record = state.saes.get(report.sae_id)
    if record is None or not _under_way(record, "downloading", report.request_position):
        return []
    if isinstance(report, ev.DownloadCompleted) and names(record.weights_sha256, report.weights_files):
        # The same weights as before keep the digest that the log knows them by, in whichever form that is.
        return [replace(report, weights_sha256=record.weights_sha256)]
    return [report]


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


def deleted(report: ev.SaeDeleted | ev.DeleteFailed, state: State) -> list[ev.Payload]:
    return [report] if _under_way(state.saes.get(report.sae_id), "deleting", report.request_position) else []


def _under_way(record: SaeRecord | None, status: str, request_position: int) -> bool:
    return record is not None and record.status == status and record.request_position == request_position
