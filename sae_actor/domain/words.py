"""Edits and positions in plain words, for auditors of a log."""

from __future__ import annotations

from collections.abc import Sequence

from .refs import Edit, Exclusion, Method, Monitoring, NamedPositions, Positions, Unit

_POSITIONS: dict[NamedPositions, str] = {
    "all": "at every position",
    "prompt": "at every position of the prompt",
    "generated": "at every generated token that is fed back",
    "response": "at the last position of the prompt and every generated token that is fed back",
    "last_prompt": "at the last position of the prompt",
}
_EXCLUSIONS: dict[Exclusion, str] = {
    "sink": "attention sinks (the first position, and outliers of the norm)",
    "special": "special tokens",
    "template": "the tokens of the chat template",
}
_UNITS: dict[Unit, str] = {
    "raw": "",
    "unit": ", in lengths of the unit vector",
    "max": ", in units of the feature's largest recorded activation",
    "norm": ", in units of the hook point's median norm",
}


def edit_in_words(edit: Edit) -> str:
    """One edit as a clause, such as `feature 3: adds 7.5 times its decoder row, at every position`."""
    words = f"feature {edit.feature}: {_deed(edit.method, edit.strength)}{_UNITS[edit.unit]}, {positions(edit)}"
    if edit.when is not None:
        words += f", where feature {edit.when.feature} is above {edit.when.above:g}"
    return words


def conflict_in_words(one: Edit, other: Edit) -> str:
    """Why two edits of a feature cannot both hold, and what to send instead."""
    here, there = _where(one.positions), _where(other.positions)
    if one.method == other.method:
        what = f"feature {one.feature} has two edits with the method {one.method}"
    else:
        what = f"feature {one.feature} has an edit with the method {one.method} and one with {other.method}"
    where = here if here == there else f"{here} and {there}, which can meet"
    if one.method == other.method and here == there:
        conditions = "" if one.when is None and other.when is None else "; their conditions do not separate them"
        return f"{what} {where}{conditions}: send one, with the strength that you want"
    return f"{what}, {where}: only one of set, scale and cap can decide an activation"


def positions(edit: Edit) -> str:
    """The positions of the edit, as words."""
    where = _where(edit.positions)
    if edit.exclude:
        where += f" except {exclusions_in_words(edit.exclude)}"
    return where


def monitoring_in_words(monitoring: Monitoring) -> str:
    """The streamed activations, such as `the 10 largest activations among features 3, 5 and 9`."""
    but = f", not at {exclusions_in_words(monitoring.exclude)}" if monitoring.exclude else ""
    if monitoring.features is None:
        return f"the {monitoring.top_k} largest activations{but}"
    if len(monitoring.features) == 1:
        return f"the activation of feature {monitoring.features[0]}{but}"
    among = _listed([str(each) for each in monitoring.features])
    return f"the {monitoring.top_k} largest activations among features {among}{but}"


def exclusions_in_words(exclude: Sequence[Exclusion]) -> str:
    """The positions that are left out, as words; `nothing` if there are none."""
    return _listed([_EXCLUSIONS[each] for each in exclude] or ["nothing"])


def ranges_in_words(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges [from, to) with both ends shown: `0, 2–6`; `none` where there is none."""
    return ", ".join(str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in ranges) or "none"


def _deed(method: Method, strength: float) -> str:
    match method:
        case "add":
            return f"adds {strength:g} times its decoder row"
        case "set":
            return f"sets its activation to {strength:g}, also where it is off"
        case "scale":
            return "takes its contribution out (activation times 0)" if strength == 0 else (
                f"multiplies its activation by {strength:g}"
            )  # fmt: skip
        case "cap":
            return f"caps its activation at {strength:g}"
        case "project":
            return "takes its direction out (projection times 0)" if strength == 0 else (
                f"multiplies the projection on its direction by {strength:g}"
            )  # fmt: skip
        case "set_projection":
            return f"sets the projection on its direction to {strength:g}"


def _where(where: Positions) -> str:
    if isinstance(where, str):
        return _POSITIONS[where]
    if where.tokens is not None:
        shown = ", ".join(map(str, where.tokens))
        return f"at position {shown}" if len(where.tokens) == 1 else f"at positions {shown}"
    if where.role is not None:
        return f"at the tokens of the {where.role}'s messages"
    if where.to is None:
        return f"from position {where.from_ or 0} on"
    return f"at positions {where.from_ or 0} to {where.to - 1}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
