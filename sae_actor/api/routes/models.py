"""`/api/models`: models that are not loaded yet."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ...config.admissible import admissible
from ...domain.commands import LoadModel
from ...domain.rules import attachments
from ...domain.structs import filled
from ...domain.views.fields import Bytes
from ...errors import BadRequestError
from ...ports import ModelSize
from ..answers import answer, state_of
from ..context import context, device
from ..disconnects import heard
from ..openapi.json_schema import DEVICE, MODEL, MODEL_DTYPE, QUANTIZATION, REVISION
from ..operations import Query, operation
from ..types import Answer, AnyRequest

CONTEXT = 2048
"""Positions of the text whose keys and values are counted as needed; fewer if the model knows fewer."""


class Assumed(Struct, frozen=True, kw_only=True):
    """What the numbers hold for."""

    model_type: str
    dtype: str
    device: str
    quantization: str | None
    """Scheme of the weights; null: plain numbers of `dtype`."""
    context: int
    """Positions of one text, whose keys and values are part of `needed_bytes`."""
    state_bytes: Bytes
    """Of one text of linear attention, however long, with the copy that a step works on; part of `needed_bytes`."""


class Fit(Struct, frozen=True, kw_only=True):
    """What a model takes, and whether there is room: the loaded model and its SAEs leave before another one comes."""

    model: str
    weights_bytes: Bytes
    kv_bytes_per_token: Bytes
    sae_bytes: Bytes
    needed_bytes: Bytes
    free_bytes: Bytes | None
    """None: the system does not say."""
    fits: bool | None
    max_context: int
    """Positions that one text can have next to model and SAE, in the memory that the settings leave for the cache."""
    assumes: Assumed


@operation("GET", "/api/models/fit",
           "What a model would take of this machine's memory, and an SAE next to it: from the model's settings, before "
           "its weights are fetched",
           query=(Query("model", MODEL, "hub id or local path",
                        required=True),
                  Query("revision", {**REVISION, "default": "main"}, "branch, tag or commit of a hub's model"),
                  Query("sae_id", {"type": "string"}, "an SAE on disk, held in float32"),
                  Query("dtype", MODEL_DTYPE, "type of the weights in memory"),
                  Query("device", DEVICE, "where it would be"),
                  Query("quantization", QUANTIZATION, "how bitsandbytes is to quantise the weights")),
           returns=Fit,
           errors=("model_not_found", "model_load_failed", "sae_not_found", "sae_invalid", "read_only", "mailbox_full"),
           tag="model")  # fmt: skip
async def get_fit(request: AnyRequest) -> Answer:
    command = _command_of(request)
    sae_id = request.query_params.get("sae_id")
    sae_bytes = 0
    if sae_id is not None:
        record = attachments.known(state_of(request), sae_id)
        sae_bytes = attachments.described(record).memory_bytes("float32")
    engine = device(request)
    async with heard(request), context(request).looks.taken():
        size = await engine.model_size(
            command.model, command.revision, command.dtype, command.device, sae_bytes, quantization=command.quantization
        )
    return answer(request, _fit(size, sae_bytes))


def _command_of(request: AnyRequest) -> LoadModel:
    """The query as the command that it is about. `BadRequestError`."""
    names = ("model", "revision", "dtype", "device", "quantization")
    given = {name: request.query_params[name] for name in names if name in request.query_params}
    if "model" not in given:
        raise BadRequestError("model is missing", param="model")
    fields = {field.name: field for field in msgspec.structs.fields(LoadModel)}
    for name, value in given.items():
        try:
            msgspec.convert(value, fields[name].type)
        except msgspec.ValidationError:
            raise BadRequestError(f"{name} must be {admissible(fields[name].type)}", param=name) from None
    try:
        return LoadModel(**given)
    except ValueError as error:
        raise BadRequestError(str(error)) from None


def _fit(size: ModelSize, sae_bytes: int) -> Fit:
    context = min(size.context_length, CONTEXT)
    needed = size.weights_bytes + sae_bytes + size.state_bytes + size.kv_bytes_per_token * context
    return filled(
        Fit,
        size,
        sae_bytes=sae_bytes,
        needed_bytes=needed,
        fits=None if size.free_bytes is None else needed <= size.free_bytes,
        assumes=filled(Assumed, size, context=context),
    )
