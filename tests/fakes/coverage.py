"""Which positions an intervention covers, told without torch: what the fake engine's receipts say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sae_actor.domain.refs import ActiveSae, Edit, Intervention, Positions, When
from sae_actor.errors import BadRequestError


def _always(*_: object) -> bool:
    return True


def covered(
    intervention: Intervention, prompt: int, run: int, met: Callable[[ActiveSae, When, int], bool] = _always
) -> tuple[set[int], set[int]]:
    """Positions edited and excluded when `run` positions were run; the only sink is position 1 (index 0).

    `met` tells whether a condition holds at a position."""
    edited: set[int] = set()
    excluded: set[int] = set()
    for sae in intervention:
        for edit in _edits(sae):
            if any(each != "sink" for each in edit.exclude):
                raise BadRequestError("only sinks can be excluded yet")
            positions = {at for at in range(run) if _covers(edit.positions, at, prompt)}
            sinks = {0} & positions if "sink" in edit.exclude or sae.mode == "reconstruct" else set()
            excluded |= sinks
            edited |= {at for at in positions - sinks if edit.when is None or met(sae, edit.when, at)}
    return edited, excluded - edited


def ranges(positions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted positions as [from, to) ranges."""
    found: list[tuple[int, int]] = []
    for at in sorted(positions):
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return tuple(found)


def _edits(sae: ActiveSae) -> tuple[Edit, ...]:
    whole = (Edit(feature=0, strength=0.0),) if sae.mode == "reconstruct" else ()
    return whole + sae.steering


def _covers(positions: Positions, at: int, prompt: int) -> bool:
    match positions:
        case "all":
            return True
        case "prompt":
            return at < prompt
        case "generated":
            return at >= prompt
        case "response":
            return at >= prompt - 1
        case "last_prompt":
            return at == prompt - 1
    if positions.tokens is not None:
        return at in positions.tokens
    if positions.role is not None:
        raise BadRequestError("positions by role are not supported yet")
    return (positions.from_ or 0) <= at < (positions.to if positions.to is not None else at + 1)
