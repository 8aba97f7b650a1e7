"""The spec of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from ...actor import raw_request
from ...domain.commands import RequestedVariant
from ...domain.measuring.specs import SweepSpec
from ...domain.messages import OwnIntervention
from ...domain.rules.admission import read_sae
from ...domain.structs import filled
from ...errors import BadRequestError
from ...runs.lists import Item
from ..answers import state_of
from ..context import device
from ..text.options import LACKING, SaeExtension, check_variants
from ..types import AnyRequest
from .sources import AskedRun, as_asked, chats_source

MOST_CONTINUATIONS = 128
Continuations: TypeAlias = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=100_000)], ...], Meta(max_length=MOST_CONTINUATIONS)
]


async def asked_sweep(request: AnyRequest, given: dict[str, Any]) -> AskedRun:
    """Raises `BadRequestError`, and what the rules refuse its SAEs and features with."""
    spec = dict(given)
    prompts = chats_source(spec.pop("prompts", None), "spec.prompts")
    continuations = as_asked(spec.pop("continuations", None) or [], Continuations, "spec.continuations")
    checked = as_asked(spec, SweepSpec, "spec")
    owns = [as_asked(each.sae, SaeExtension, f"spec.variants[{at}].sae") for at, each in enumerate(checked.variants)]
    names = [each.name for each in checked.variants]
    check_variants(zip(names, owns, strict=True), "spec.variants", "in a sweep", (*LACKING, "details", "details_of"))
    variants = [await _raw(request, name, own) for name, own in zip(names, owns, strict=True)]
    if len(set(checked.seeds or ())) != len(checked.seeds or ()):
        raise BadRequestError("a seed stands there twice", param="spec.seeds")
    read: tuple[str, ...] = ()
    if checked.features is not None:
        sae = read_sae(state_of(request), checked.sae_id, checked.features, "a sweep with features")
        read, checked = (sae.sae_id,), replace(checked, sae_id=sae.sae_id)
    elif checked.sae_id is not None:
        raise BadRequestError("sae_id says whose features: give features too", param="spec.sae_id")
    lists: dict[str, Any] = {"prompts": prompts.items(request)}
    if continuations:
        lists["continuations"] = (Item(text=each) for each in continuations)
    return AskedRun(
        spec=msgspec.to_builtins(checked),
        lists=lists,
        origins={"prompts": prompts.origin},
        read=read,
        variants=tuple(variants),
        seeds=checked.seeds or (),
    )


async def _raw(request: AnyRequest, name: str, own: SaeExtension) -> RequestedVariant:
    intervention = await raw_request(filled(OwnIntervention, own), state_of(request), device(request))
    return filled(
        RequestedVariant,
        intervention,
        name=name,
        baseline=own.baseline,
        deterministic=own.deterministic,
        expect_position=own.expect_position,
    )
