"""`/api/directions`: a direction out of texts that the model reads, or a random one to compare it with."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from ....domain.events import MadeFrom, NormOf, TextsRead
from ....domain.refs import HookPoint
from ....domain.rules.admission import attached_sae, model_to_ask
from ....domain.views.saes import Sae
from ....errors import BadRequestError, SAEUnsupportedError
from ....generations import read_activations
from ....ports import Activations, NewVectors, Watch
from ...answers import state_of
from ...context import context, device, principal
from ...disconnects import heard
from ...operations import operation
from ...requests import body_of
from ...submission import REFUSALS
from ...types import Answer, AnyRequest
from ...vectors import KEPT, VectorsName, keep, refuse_read_only
from .inputs import ReadInput, read_inputs
from .places import placed
from .texts import Texts, inputs_of, plain, reading, refuse_bare, same_model, settle_texts, side_by_side

Length: TypeAlias = Annotated[float, Meta(gt=0, le=1e30)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class DirectionsBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`positive` and `negative`, or `random_seed` and `norm_of`."""

    name: VectorsName
    hook_point: HookPoint
    positive: Texts | None = None
    negative: Texts | None = None
    random_seed: Annotated[Seed | None, Meta(description="the same seed gives the same direction")] = None
    norm_of: NormOf | Length | None = None
    """Length of the random direction: a number, or that of the decoder row of an attached SAE's feature."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        settle_texts(value, "positive", "negative")

    def __post_init__(self) -> None:
        texts, chance = (self.positive, self.negative), (self.random_seed, self.norm_of)
        if None in texts if chance == (None, None) else (None in chance or texts != (None, None)):
            raise ValueError("give positive and negative, or random_seed and norm_of")


@operation(
    "POST", "/api/directions",
    "Keep a direction as vectors: the mean activation of the positive texts or chats at the hook point less that of "
    "the negative ones, of each the mean over its tokens but attention sinks and special ones, without an "
    "intervention; or a random direction of the length of another. The same request of the same model makes the same "
    "`sae_id`: each text runs alone",
    body=DirectionsBody, returns=Sae, answers=KEPT,
    examples={
        "of texts": {"name": "warm", "hook_point": {"kind": "resid_post", "layer": 15},
                     "positive": ["I love this"], "negative": ["I hate this"]},
        "random": {"name": "chance", "hook_point": {"kind": "resid_post", "layer": 15},
                   "random_seed": 0, "norm_of": 12.5},
    },
    errors=(*REFUSALS, "sae_ambiguous", "mailbox_full", "out_of_memory", "deadline_exceeded", "disk_full", "read_only",
            "quota_exceeded"),
    command=True, tag="text",
)  # fmt: skip
async def post_directions(request: AnyRequest) -> Answer:
    body: DirectionsBody = await body_of(request, DirectionsBody)
    refuse_read_only(request)
    model, position = model_to_ask(state_of(request))
    point = placed(body.hook_point, model)
    made_from = MadeFrom(kind="random", model=model.model_id, commit=model.commit)
    if body.positive is None or body.negative is None:
        assert body.random_seed is not None
        norm, row = await _random(request, body, model.width(point))
        of = body.norm_of if isinstance(body.norm_of, NormOf) else None
        made_from = replace(made_from, random_seed=body.random_seed, norm=norm, norm_of=of)
        return await keep(request, _vectors(body, point, row, None), made_from)
    positive = await read_inputs(request, inputs_of(body.positive), name="positive")
    negative = await read_inputs(request, inputs_of(body.negative), name="negative")
    with reading(request, (*positive, *negative)):
        a = await _read(request, positive, body.positive, "positive", point=point, position=position)
        b = await _read(request, negative, body.negative, "negative", point=point, position=position)
    row, median_norm = await asyncio.to_thread(_between, a, b)
    if not any(row):
        raise BadRequestError("the texts differ in nothing at this hook point", param="positive")
    made_from = replace(made_from, kind="difference_of_means", positive=a.said, negative=b.said)
    return await keep(request, _vectors(body, point, row, median_norm), made_from)


def _vectors(body: DirectionsBody, point: HookPoint, row: Sequence[float], median_norm: float | None) -> NewVectors:
    return NewVectors(name=body.name, hook_point=point, rows=(row,), names=(body.name,), median_norm=median_norm)


async def _random(request: AnyRequest, body: DirectionsBody, width: int) -> tuple[float, tuple[float, ...]]:
    """The length, and a direction of that length whose numbers are normally distributed."""
    if isinstance(body.norm_of, NormOf):
        sae = attached_sae(state_of(request), body.norm_of.sae_id, (body.norm_of.feature,))
        async with heard(request), context(request).looks.taken():
            norm = (await device(request).feature(sae.attach_position, body.norm_of.feature)).decoder_norm
        if norm == 0:
            raise SAEUnsupportedError("that feature writes nothing: its decoder row is 0", feature=body.norm_of.feature)
    else:
        assert body.norm_of is not None
        norm = body.norm_of
    generator = random.Random(body.random_seed)
    row = [generator.gauss(0.0, 1.0) for _ in range(width)]
    length = math.hypot(*row)
    return norm, tuple(norm * value / length for value in row)


class _Mean(Struct, frozen=True):
    """What the model makes of a list of texts."""

    mean: tuple[float, ...]
    norms: tuple[float, ...]
    """Of the tokens that are counted."""
    said: TextsRead


def _between(a: _Mean, b: _Mean) -> tuple[tuple[float, ...], float]:
    """The difference, and the median norm of all tokens: there may be millions."""
    return tuple(x - y for x, y in zip(a.mean, b.mean, strict=True)), statistics.median([*a.norms, *b.norms])


async def _read(
    request: AnyRequest, prompts: Sequence[ReadInput], texts: Texts, name: str, *, point: HookPoint, position: int
) -> _Mean:
    watch = Watch.at(point, ("sink", "special"))
    engine, seconds = device(request), context(request).generations.deadline_seconds

    async def one(given: ReadInput) -> Activations:
        same_model(request, position)
        # Each alone: what else runs would change the last bits, and with them the digest that names the direction.
        return await read_activations(
            engine,
            given.token_ids,
            (),
            (),
            watch,
            deadline_seconds=seconds,
            share=principal(request),
            alone=True,
        )

    found = await side_by_side(request, [partial(one, each) for each in prompts])
    refuse_bare(found, name)
    return await asyncio.to_thread(_mean, texts, found)


def _mean(texts: Texts, found: Sequence[Activations]) -> _Mean:
    tokens = sum(each.excluded.count(False) for each in found)
    counted = (norm for each in found for norm, out in zip(each.norms, each.excluded, strict=True) if not out)
    said = TextsRead(
        texts=len(texts),
        sha256=hashlib.sha256(msgspec.json.encode(plain(texts))).hexdigest(),
        tokens=tokens,
        excluded=sum(len(each.excluded) for each in found) - tokens,
    )
    return _Mean(
        tuple(sum(column) / len(found) for column in zip(*(each.mean for each in found), strict=True)),
        tuple(counted),
        said,
    )
