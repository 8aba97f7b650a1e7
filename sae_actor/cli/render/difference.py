"""The difference between two states, in plain words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ...domain.words import edit_in_words, monitoring_in_words
from .answers import counted, hook, plain

View = dict[str, Any]

_QUIET = ("files", "attached_at")
"""Fields whose values mean nothing to a person: a change is described in words."""


def difference(view: View) -> str:
    """`comparing.difference` for a person."""
    lines = [f"from position {view['from']} to {view['to']}"]
    found = [
        *_model(view["model"]),
        *_saes(view["saes"]),
        *_attachments(view["attachments"]),
        *_presets(view["presets"]),
    ]
    return plain("\n".join(lines + (found or ["nothing changed of model, SAEs, attachments, steering and presets"])))


def histories(view: View) -> str:
    """Two histories of one log for a person."""
    common = view["common"]
    lines = [f"both have    {counted(common['position'])}, head {common['position']} {common['hash']}"]
    for label, side in (("this log", view["mine"]), ("the other", view["other"])):
        if not side["events"]:
            lines.append(f"{label:<11}  ends there")
            continue
        head = side["head"]
        lines.append(f"{label:<11}  goes on with {counted(side['events'])}, head {head['position']} {head['hash']}")
        for fork in side["forks"]:
            data = fork["data"]
            lines.append(f"  forked at {fork['position']} ({data['reason']}), its event ids {data['branch_id'][:8]}")
        changes = side["changes"]
        found = [*_model(changes["model"]), *_saes(changes["saes"]), *_attachments(changes["attachments"])]
        lines += [f"  {line}" for line in found or ["nothing changed of model, SAEs, attachments and steering"]]
    return plain("\n".join(lines))


def _model(changes: View) -> Iterator[str]:
    if not changes:
        return
    name = changes.get("model_id")
    if name is not None and name["before"] is None:
        yield f"model       {name['after']} came"
    elif name is not None and name["after"] is None:
        yield f"model       {name['before']} went"
        return
    else:
        yield "model"
    yield from _changes({key: pair for key, pair in changes.items() if key != "model_id" or pair["before"]})


def _saes(entries: View) -> Iterator[str]:
    for each in entries["added"]:
        yield f"sae         {each['sae_id']} came, {each['status']}"
        yield from _facts(each, ("repository_id", "revision", "path", "commit", "weights_sha256"))
    for each in entries["removed"]:
        yield f"sae         {each['sae_id']} went"
    for each in entries["changed"]:
        yield f"sae         {each['sae_id']}"
        yield from _changes(each["changes"])


def _attachments(entries: View) -> Iterator[str]:
    for each in entries["added"]:
        steering = "" if each["steering_enabled"] else ", steering out of force"
        yield f"attachment  {each['sae_id']} {each['status']} at {hook(each['hook_point'])}, {each['mode']}{steering}"
        yield from _facts(each, ("dtype", "weights_sha256"))
        yield from _edits("edit", each["steering"])
        if each["monitoring"] is not None:
            yield f"  monitored: {_monitored(each['monitoring'])}"
    for each in entries["removed"]:
        yield f"attachment  {each['sae_id']} is not at {hook(each['hook_point'])} any more"
        yield from _edits("gone", each["steering"])
    for each in entries["changed"]:
        yield f"attachment  {each['sae_id']}"
        yield from _changes(each["changes"])
        steering = each["steering"]
        yield from _edits("new", steering["added"])
        yield from _edits("gone", steering["removed"])
        for pair in steering["changed"]:
            yield f"  {'was':<8}  {edit_in_words(pair['before'])}"
            yield f"  {'is':<8}  {edit_in_words(pair['after'])}"
        if steering["reordered"]:
            yield "  the edits are in another order"


def _presets(entries: View) -> Iterator[str]:
    for word, label in (("added", "new"), ("removed", "gone")):
        for each in entries[word]:
            yield f"preset      {each['name']} {'was saved' if word == 'added' else 'was deleted'}"
            yield from _preset(label, each["interventions"])
    for each in entries["changed"]:
        yield f"preset      {each['name']} was saved anew"
        changes = each["changes"]
        yield from _changes({name: pair for name, pair in changes.items() if name != "interventions"})
        if "interventions" in changes:
            yield from _preset("was", changes["interventions"]["before"])
            yield from _preset("is", changes["interventions"]["after"])


def _preset(label: str, interventions: Sequence[View]) -> Iterator[str]:
    for sae in interventions:
        yield f"  {label:<8}  {sae['sae_id']}, {sae['mode']}"
        yield from _edits("edit", sae["steering"])


def _edits(label: str, edits: Sequence[View]) -> Iterator[str]:
    return (f"  {label:<8}  {edit_in_words(edit)}" for edit in edits)


def _monitored(monitoring: View | None) -> str:
    return "nothing" if monitoring is None else monitoring_in_words(monitoring)


def _facts(fields: View, names: Sequence[str]) -> Iterator[str]:
    return (f"  {name}: {fields[name]}" for name in names if fields[name] is not None)


def _changes(changes: View) -> Iterator[str]:
    for name, pair in changes.items():
        if name == "attached_at" and None not in pair.values():
            yield f"  attached anew at {pair['after']} (before: {pair['before']})"
        elif name == "monitoring":
            yield f"  monitored: {_monitored(pair['before'])} → {_monitored(pair['after'])}"
        elif name not in _QUIET:
            yield f"  {name}: {_value(pair['before'])} → {_value(pair['after'])}"
        elif name == "files":
            yield "  its files changed"


def _value(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"kind", "layer"}:
        return hook(value)
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
