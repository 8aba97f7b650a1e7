"""Edits and positions in plain words, for auditors of a log: of JSON, with Python's standard library alone, as it goes
with every export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WHERE = {
    "all": "at every position",
    "prompt": "at every position of the prompt",
    "generated": "at every generated token that is fed back",
    "response": "at the last position of the prompt and every generated token that is fed back",
    "last_prompt": "at the last position of the prompt",
}
LEFT_OUT = {
    "sink": "attention sinks (the first position, and outliers of the norm)",
    "special": "special tokens",
    "template": "the tokens of the chat template",
}
UNITS = {
    "raw": "",
    "unit": ", in lengths of the unit vector",
    "max": ", in units of the feature's largest recorded activation",
    "norm": ", in units of the hook point's median norm",
}
DEEDS = {
    "add": "adds {0:g} times its decoder row",
    "set": "sets its activation to {0:g}, also where it is off",
    "scale": "multiplies its activation by {0:g}",
    "cap": "caps its activation at {0:g}",
    "project": "multiplies the projection on its direction by {0:g}",
    "set_projection": "sets the projection on its direction to {0:g}",
}
NOUGHT = {
    "scale": "takes its contribution out (activation times 0)",
    "project": "takes its direction out (projection times 0)",
}
"""Methods with strength 0."""


def edit_in_words(edit: dict[str, Any]) -> str:
    """One edit as a clause, such as `feature 3: adds 7.5 times its decoder row, at every position`."""
    strength, method = float(edit["strength"]), edit.get("method", "add")
    deed = NOUGHT[method] if strength == 0 and method in NOUGHT else DEEDS[method].format(strength)
    where = place_in_words(edit.get("positions", "all"))
    if edit.get("exclude"):
        where += f" except {exclusions_in_words(edit['exclude'])}"
    words = f"feature {edit['feature']}: {deed}{UNITS[edit.get('unit', 'raw')]}, {where}"
    when = edit.get("when")
    return words if when is None else f"{words}, where feature {when['feature']} is above {when['above']:g}"


def place_in_words(where: Any) -> str:
    if isinstance(where, str):
        return WHERE[where]
    if where.get("tokens") is not None:
        shown = ", ".join(map(str, where["tokens"]))
        return f"at position {shown}" if len(where["tokens"]) == 1 else f"at positions {shown}"
    if where.get("role") is not None:
        return f"at the tokens of the {where['role']}'s messages"
    if where.get("to") is None:
        return f"from position {where.get('from') or 0} on"
    return f"at positions {where.get('from') or 0} to {where['to'] - 1}"


def monitoring_in_words(monitoring: dict[str, Any]) -> str:
    """The streamed activations, such as `the 10 largest activations among features 3, 5 and 9`."""
    features, top_k = monitoring["features"], monitoring["top_k"]
    but = f", not at {exclusions_in_words(monitoring['exclude'])}" if monitoring["exclude"] else ""
    if features is None:
        return f"the {top_k} largest activations{but}"
    if len(features) == 1:
        return f"the activation of feature {features[0]}{but}"
    return f"the {top_k} largest activations among features {_listed(map(str, features))}{but}"


def exclusions_in_words(exclude: Iterable[str]) -> str:
    """The positions that are left out, as words; `nothing` if there are none."""
    return _listed(LEFT_OUT[each] for each in exclude)


def ranges_in_words(ranges: Iterable[Any]) -> str:
    """Ranges [from, to) with both ends shown: `0, 2–6`; `none` where there is none."""
    return ", ".join(str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in ranges) or "none"


def _listed(parts: Iterable[str]) -> str:
    found = list(parts) or ["nothing"]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
