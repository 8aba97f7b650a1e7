"""`/api/saes`: SAEs as resources. Every write is one of the commands."""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from msgspec import Struct, structs

from ...config.admissible import admissible
from ...domain.commands import (
    Attach,
    CancelDownload,
    Delete,
    Detach,
    Download,
    RepositoryId,
    RepositoryPath,
    Revision,
    is_public_name,
)
from ...domain.events import AttachRequested, DownloadCancelled, SaeAttached, SaeDeleted, SaeDetached
from ...domain.placement import target
from ...domain.refs import Dtype, Exclusions, HookPoint, Layer, Mode
from ...domain.rules import attachments
from ...domain.rules.admission import attached_sae
from ...domain.structs import filled
from ...domain.views.attachments import Attachment, attachment_view
from ...domain.views.fields import Bytes, Position
from ...domain.views.saes import Sae, sae_view
from ...domain.weights import sae_id_of
from ...errors import BadRequestError, SAEError, SAEUnsupportedError
from ...ports import CatalogEntry, Hub, NearFeature, TokenWeight
from ..answers import answer, state_of
from ..context import context, device
from ..disconnects import heard
from ..openapi.json_schema import REPOSITORY, REVISION
from ..operations import Query, operation
from ..requests import body_of, decoded, whole_number
from ..submission import EXAMPLES, REFUSALS, CommandOutcome, accept, answered, command_for, finish, last, placed, submit
from ..types import Answer, AnyRequest

MAX_LAYER = 4095
LAYER = {"type": "integer", "minimum": 0, "maximum": MAX_LAYER}
SHOWN = 3
"""Places that a refusal names."""
DONE_OR_ACCEPTED = ((200, "application/json"), (202, "application/json"))


class AttachBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Attach without `type` and `sae_id`."""

    layer: Layer | None = None
    hook_point: HookPoint | None = None
    mode: Mode = "steer"
    dtype: Dtype = "float32"
    replace: bool = False
    exclude: Exclusions | None = None


class DownloadBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Download without `type`."""

    repository_id: RepositoryId
    revision: Revision = "main"
    path: RepositoryPath | None = None
    force: bool = False


class EmptyBody(Struct, frozen=True, forbid_unknown_fields=True):
    """An empty body: `{}`, or no body at all."""


class Attached(Struct, frozen=True, kw_only=True):
    status: Literal["attached"]
    sae_id: str
    layer: int
    hook_point: HookPoint
    memory_bytes: Bytes
    device_bytes: Bytes
    warnings: tuple[str, ...]
    position: Position


class Freed(Struct, frozen=True, kw_only=True):
    """Of memory (`detached`), or of the disk (`deleted`)."""

    status: Literal["detached", "deleted"]
    sae_id: str
    freed_bytes: Bytes
    position: Position


class Cancelled(Struct, frozen=True, kw_only=True):
    status: Literal["cancelled"]
    sae_id: str
    position: Position


class Objection(Struct, frozen=True, kw_only=True):
    code: str
    detail: str


class Compatibility(Struct, frozen=True, kw_only=True):
    compatible: bool
    sae_d_in: int
    model_d: int | None
    layer: int | None
    warnings: tuple[str, ...]
    errors: tuple[Objection, ...]


class Feature(Struct, frozen=True, kw_only=True):
    """What the weights, the unembedding and the SAE's folder say of a feature."""

    sae_id: str
    feature: int
    decoder_norm: float
    bias: float | None
    threshold: float | None
    nearest: tuple[NearFeature, ...]
    promoted: tuple[TokenWeight, ...]
    suppressed: tuple[TokenWeight, ...]
    label: str | None
    max_activation: float | None
    density: float | None
    top_tokens: tuple[str, ...]


class Disk(Struct, frozen=True, kw_only=True):
    used_bytes: Bytes
    quota_bytes: Bytes | None


class SaeList(Struct, frozen=True, kw_only=True):
    saes: tuple[Sae, ...]
    attachment: Attachment
    disk: Disk


async def _nothing(request: AnyRequest) -> None:
    if await request.body():
        await body_of(request, EmptyBody)


@operation("GET", "/api/saes", "All SAEs and what is attached", returns=SaeList, users=True, tag="saes")
async def list_saes(request: AnyRequest) -> Answer:
    state = state_of(request)
    saes = tuple(sae_view(record, state) for record in state.saes.values())
    disk = Disk(used_bytes=await context(request).hub.disk_use(), quota_bytes=context(request).quota_bytes)
    return answer(request, SaeList(saes=saes, attachment=attachment_view(state), disk=disk))


@operation("GET", "/api/saes/attachment", "What is attached", returns=Attachment, users=True, tag="saes")
async def get_attachment(request: AnyRequest) -> Answer:
    return answer(request, attachment_view(state_of(request)))


@operation("GET", "/api/saes/{sae_id}/features/{feature}",
           "One feature of an attached SAE: norm of its decoder row, bias, threshold, nearest features by the cosine "
           "of their decoder rows, tokens that it promotes and suppresses through the unembedding (the final norm left "
           "out), and its entry in `features.json` next to the weights",
           returns=Feature,
           errors=("sae_not_found", "sae_not_attached", "feature_out_of_range", "sae_invalid", "read_only",
                   "mailbox_full"),
           users=True, tag="saes")  # fmt: skip
async def get_feature(request: AnyRequest) -> Answer:
    sae_id, written = request.path_params["sae_id"], request.path_params["feature"]
    if not re.fullmatch(r"[0-9]{1,10}", written):
        raise BadRequestError("a feature is a whole number, 0 or above", param="feature")
    engine = device(request)
    sae = attached_sae(state_of(request), sae_id, (int(written),))
    async with heard(request), context(request).looks.taken():
        details = await engine.feature(sae.attach_position, int(written))
    return answer(request, filled(Feature, details, sae_id=sae_id))


@operation("GET", "/api/saes/{sae_id}", "One SAE", returns=Sae, errors=("sae_not_found",), users=True, tag="saes")
async def get_sae(request: AnyRequest) -> Answer:
    state = state_of(request)
    return answer(request, sae_view(attachments.known(state, request.path_params["sae_id"]), state))


@operation(
    "POST", "/api/saes/download", "Download an SAE",
    body=DownloadBody, answers=((202, "application/json"), (200, "application/json")), returns=CommandOutcome,
    examples={"one of several": {key: value for key, value in EXAMPLES["Download"].items() if key != "type"}},
    errors=(*REFUSALS, "not_found", "sae_ambiguous"), command=True, tag="saes",
)  # fmt: skip
async def download(request: AnyRequest) -> Answer:
    body: DownloadBody = await body_of(request, DownloadBody)
    command: Download = decoded(msgspec.json.encode({"type": "Download", **msgspec.to_builtins(body)}), Download)
    command = await placed(request, command)
    return await accept(request, command, sae_id_of(command.repository_id, command.path, command.revision))


@operation("POST", "/api/saes/{sae_id}/attach", "Attach, and wait for it", body=AttachBody, bodiless=True,
           examples={"elsewhere": {"layer": 6, "replace": True}}, returns=Attached,
           answers=DONE_OR_ACCEPTED, errors=(*REFUSALS, "out_of_memory"), command=True, tag="saes")  # fmt: skip
async def attach(request: AnyRequest) -> Answer:
    body = await body_of(request, AttachBody) if await request.body() else AttachBody()
    command = command_for(request, Attach, **msgspec.to_builtins(body))
    return await finish(request, command, Attached, SaeAttached, AttachRequested, status="attached")


@operation("POST", "/api/saes/{sae_id}/detach", "Detach, and wait for it", body=EmptyBody, bodiless=True,
           returns=Freed, answers=DONE_OR_ACCEPTED, errors=REFUSALS, command=True, tag="saes")  # fmt: skip
async def detach(request: AnyRequest) -> Answer:
    await _nothing(request)
    return await finish(request, command_for(request, Detach), Freed, SaeDetached, status="detached")


@operation("DELETE", "/api/saes/{sae_id}", "Delete the files",
           returns=Freed, answers=DONE_OR_ACCEPTED, errors=REFUSALS, command=True, tag="saes")  # fmt: skip
async def delete(request: AnyRequest) -> Answer:
    return await finish(request, command_for(request, Delete), Freed, SaeDeleted, status="deleted")


@operation("POST", "/api/saes/{sae_id}/cancel", "Stop the download", body=EmptyBody, bodiless=True,
           returns=Cancelled, errors=REFUSALS, command=True, tag="saes")  # fmt: skip
async def cancel(request: AnyRequest) -> Answer:
    await _nothing(request)
    accepted = await submit(request, command_for(request, CancelDownload))
    done, event = last(accepted.events, DownloadCancelled)
    await context(request).actor.effect_ended("download", done.request_position)
    return answered(request, filled(Cancelled, done, event, status="cancelled"), upto=event.position)


@operation("GET", "/api/saes/{sae_id}/compatibility", "Whether an SAE fits the loaded model",
           query=(Query("layer", LAYER, "instead of the hook point it was trained at"),),
           returns=Compatibility, errors=("sae_not_found", "model_not_loaded", "sae_in_use", "sae_invalid"),
           users=True, tag="saes")  # fmt: skip
async def compatibility(request: AnyRequest) -> Answer:
    state = state_of(request)
    sae = attachments.described(attachments.known(state, request.path_params["sae_id"]))
    model = attachments.loaded_model(state)
    given = "layer" in request.query_params
    layer = whole_number(request, "layer", default=-1, low=0, high=MAX_LAYER) if given else None
    point = sae.hook_point
    if point is not None and layer is not None:
        point = structs.replace(point, layer=layer)
    warnings, objections = sae.warnings, tuple[Objection, ...]()
    try:
        warnings = target(sae, model, layer, None).warnings
    except SAEError as error:
        objections = (Objection(code=error.code, detail=error.detail),)
    view = Compatibility(
        compatible=not objections,
        sae_d_in=sae.d_in,
        model_d=None if point is None else model.width(point) or model.widths.get(point.kind),
        layer=layer if point is None else point.layer,
        warnings=warnings,
        errors=objections,
    )
    return answer(request, view)


@operation("GET", "/api/catalog", "The SAEs inside a repository",
           query=(Query("repository_id", REPOSITORY, "hub id, or a name of SAELens or Neuronpedia", required=True),
                  Query("revision", {**REVISION, "default": "main"}, "branch, tag or commit")),
           returns=list[CatalogEntry], errors=("not_found_or_private", "gated", "sae_download_failed", "not_found",
                                               "sae_unsupported"),
           users=True, tag="saes")  # fmt: skip
async def get_catalog(request: AnyRequest) -> Answer:
    query = {"revision": "main", "repository_id": "", **request.query_params}
    for name, type_ in (("repository_id", RepositoryId), ("revision", Revision)):
        try:
            msgspec.convert(query[name], type_)
        except msgspec.ValidationError:
            raise BadRequestError(f"{name} must be {admissible(type_)}", param=name) from None
    hub, name, revision = context(request).hub, query["repository_id"], query["revision"]
    async with heard(request):
        if is_public_name(name):
            return answer(request, await _named(hub, name, revision))
        return answer(request, await hub.catalog(name, revision))


async def _named(hub: Hub, name: str, revision: str) -> list[CatalogEntry]:
    """The SAEs that a name stands for, where they are in a form that can be read. `SAEUnsupportedError` if none is."""
    found = {(each.repository_id, each.path or ""): each.named_as for each in await hub.named(name)}
    entries = [
        structs.replace(entry, named_as=found[at], repository_id=repository_id, revision=revision)
        for repository_id in dict.fromkeys(repository_id for repository_id, _ in found)
        for entry in await hub.catalog(repository_id, revision)
        if (at := (repository_id, entry.path)) in found
    ]
    if not entries:
        places = ", ".join(f"{repository_id} at {path or 'its root'}" for repository_id, path in list(found)[:SHOWN])
        raise SAEUnsupportedError(f"{name} is {places}: there is no SAE of a known format there", name=name)
    return entries
