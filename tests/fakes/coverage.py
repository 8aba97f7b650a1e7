"""Which positions an intervention covers, told without torch: what the fake engine's receipts say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from sae_actor.domain.chats import MessageSpan
from sae_actor.domain.refs import ActiveSae, Exclusion, Intervention, Positions, When


def _always(*_: object) -> bool:
    return True


def covered(
    intervention: Intervention,
    prompt: int,
    run: int,
    *,
    met: Callable[[ActiveSae, When, int], bool] = _always,
    special: Collection[int] = (),
    turns: Sequence[MessageSpan] = (),
) -> tuple[set[int], set[int]]:
    """Positions edited and excluded when `run` positions were run; the only sink is position 1 (index 0).

    `met` tells whether a condition holds at a position; `special` are positions of special tokens."""
    edited: set[int] = set()
    excluded: set[int] = set()
    for sae in intervention:
        if sae.mode == "reconstruct":
            left = left_out(sae.passes, prompt, special, turns)
            excluded |= left & set(range(run))
            edited |= set(range(run)) - left
            continue
        for edit in sae.steering:
            positions = {at for at in range(run) if _covers(edit.positions, at, prompt, turns)}
            left = left_out(edit.exclude, prompt, special, turns)
            excluded |= left & positions
            edited |= {at for at in positions - left if edit.when is None or met(sae, edit.when, at)}
    return edited, excluded - edited


def holding(
    sae: ActiveSae,
    at: int,
    prompt: int,
    *,
    met: Callable[[ActiveSae, When, int], bool] = _always,
    special: Collection[int] = (),
    turns: Sequence[MessageSpan] = (),
) -> tuple[int, ...]:
    """Indices of the SAE's edits that hold at a position."""
    if sae.mode == "reconstruct" and at in left_out(sae.passes, prompt, special, turns):
        return ()
    return tuple(
        n
        for n, edit in enumerate(sae.steering)
        if _covers(edit.positions, at, prompt, turns)
        and at not in left_out(edit.exclude, prompt, special, turns)
        and (edit.when is None or met(sae, edit.when, at))
    )


def left_out(
    exclude: Collection[Exclusion], prompt: int, special: Collection[int] = (), turns: Sequence[MessageSpan] = ()
) -> set[int]:
    """Positions of these kinds."""
    said = {at for turn in turns for part in turn.said for at in range(*part)}
    left = {0} if "sink" in exclude else set()
    left |= set(special) if "special" in exclude else set()
    return left | (set(range(prompt)) - said if turns and "template" in exclude else set())


def ranges(positions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted positions as [from, to) ranges."""
    found: list[tuple[int, int]] = []
    for at in sorted(positions):
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return tuple(found)


def _covers(positions: Positions, at: int, prompt: int, turns: Sequence[MessageSpan]) -> bool:
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
        return any(turn.role == positions.role and turn.first <= at < turn.stop for turn in turns)
    return (positions.from_ or 0) <= at < (positions.to if positions.to is not None else at + 1)
