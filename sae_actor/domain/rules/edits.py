"""The rules of one set of edits: feature range and contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from ...errors import BadRequestError, ConflictingEditsError, FeatureOutOfRangeError, SAEUnsupportedError
from ..refs import Edit, Exclusion, Positions, SaeDescription, Span
from ..words import place_in_words

ACTIVATION_METHODS = frozenset({"set", "scale", "cap"})
WITHOUT_ENCODER = ("add", "project", "set_projection")

_DISJOINT = {
    frozenset({"prompt", "generated"}),
    frozenset({"last_prompt", "generated"}),
}


def checked(edits: Sequence[Edit], sae_id: str, sae: SaeDescription) -> tuple[Edit, ...]:
    """The edits as they are kept, for this SAE.

    Raises `FeatureOutOfRangeError`, `ConflictingEditsError`, `BadRequestError`; `SAEUnsupportedError` for an edit of
    vectors that needs an encoder.
    """
    d_sae = sae.d_sae
    for edit in edits:
        if edit.sae_id not in (None, sae_id):
            raise BadRequestError(f"the edit names {edit.sae_id}, the command {sae_id}", param="sae_id")
        in_range((edit.feature,) if edit.when is None else (edit.feature, edit.when.feature), sae_id, d_sae)
        if edit.method in ACTIVATION_METHODS:
            needs_encoder(sae, sae_id, f"method {edit.method}", param="method", feature=edit.feature)
        if edit.when is not None:
            needs_encoder(sae, sae_id, "when", param="when", feature=edit.when.feature)
    for edit in edits:
        # If one of them does not name a feature, none is resolved: that error comes first.
        _refuse_unresolved(edit)
    for i, one in enumerate(edits):
        for other in edits[i + 1 :]:
            if one.feature == other.feature and _contradict(one, other):
                raise ConflictingEditsError(_conflict_in_words(one, other), feature=one.feature)
    return tuple(replace(edit, sae_id=None, exclude=named_once(edit.exclude)) for edit in edits)


def needs_encoder(sae: SaeDescription, sae_id: str, what: str, **fields: Any) -> None:
    """`SAEUnsupportedError` for `what`, asked of vectors."""
    if not sae.encodes:
        raise SAEUnsupportedError(
            f"{what} needs an encoder, and {sae_id} holds vectors: they take {', '.join(WITHOUT_ENCODER)}",
            sae_id=sae_id,
            architecture=sae.architecture,
            **fields,
        )


def named_once(exclude: Sequence[Exclusion]) -> tuple[Exclusion, ...]:
    return tuple(dict.fromkeys(exclude))


def in_range(features: Iterable[int], sae_id: str, d_sae: int) -> None:
    """`FeatureOutOfRangeError` for a feature that the SAE of `d_sae` features lacks."""
    for feature in features:
        if feature >= d_sae:
            raise FeatureOutOfRangeError(
                f"feature {feature} is not below d_sae {d_sae}", feature=feature, d_sae=d_sae, sae_id=sae_id
            )


def _refuse_unresolved(edit: Edit) -> None:
    """Strengths are decided, applied and logged raw; other units are resolved before they come here."""
    if edit.unit != "raw":
        raise BadRequestError(f"unit '{edit.unit}' was not resolved to a raw strength", param="unit")


def _contradict(one: Edit, other: Edit) -> bool:
    if one.method == other.method and _same(one.positions, other.positions):
        return True
    both_set = one.method in ACTIVATION_METHODS and other.method in ACTIVATION_METHODS
    return both_set and _overlap(one.positions, other.positions)


def _same(one: Positions, other: Positions) -> bool:
    if isinstance(one, Span) and isinstance(other, Span):
        if one.tokens is not None and other.tokens is not None:
            return set(one.tokens) == set(other.tokens)
        if one.tokens is None and other.tokens is None:
            return (one.from_ or 0, one.to, one.role) == (other.from_ or 0, other.to, other.role)
    return one == other


def _overlap(one: Positions, other: Positions) -> bool:
    """Whether the two can meet in some prompt. A span and a name count as meeting, unless they never can.

    A token is in the messages of at most one role; generated tokens are in none.
    """
    roles = [each.role for each in (one, other) if isinstance(each, Span) and each.role is not None]
    if len(roles) == 2:
        return roles[0] == roles[1]
    if roles and "generated" in (one, other):
        return False
    if isinstance(one, Span) and isinstance(other, Span):
        if roles:
            return True
        if one.tokens is not None and other.tokens is not None:
            return not set(one.tokens).isdisjoint(other.tokens)
        if one.tokens is not None or other.tokens is not None:
            tokens, span = (one.tokens, other) if one.tokens is not None else (other.tokens, one)
            return any((span.from_ or 0) <= t and (span.to is None or t < span.to) for t in tokens or ())
        return _starts_in(one, other) or _starts_in(other, one)
    if isinstance(one, str) and isinstance(other, str):
        return frozenset({one, other}) not in _DISJOINT
    return True


def _starts_in(one: Span, other: Span) -> bool:
    """Whether the first position of a span without tokens is one of `other`'s."""
    first = one.from_ or 0
    return (other.from_ or 0) <= first and (other.to is None or first < other.to)


def _conflict_in_words(one: Edit, other: Edit) -> str:
    """Why two edits of a feature cannot both hold, and what to send instead."""
    here, there = (place_in_words(to_builtins(each.positions)) for each in (one, other))
    if one.method == other.method:
        what = f"feature {one.feature} has two edits with the method {one.method}"
    else:
        what = f"feature {one.feature} has an edit with the method {one.method} and one with {other.method}"
    where = here if here == there else f"{here} and {there}, which can meet"
    if one.method == other.method and here == there:
        conditions = "" if one.when is None and other.when is None else "; their conditions do not separate them"
        return f"{what} {where}{conditions}: send one, with the strength that you want"
    return f"{what}, {where}: only one of set, scale and cap can decide an activation"
