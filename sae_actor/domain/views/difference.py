"""The differences between two states of the service: model, SAEs, attachments, steering."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ..refs import Edit
from ..state import AttachmentState, ModelState, Preset, SaeRecord, State

View = dict[str, Any]

_SAE = ("status", "source", "repository_id", "revision", "path", "commit", "weights_sha256", "files", "error")
_ATTACHMENT = ("status", "hook_point", "hook_point_out", "mode", "exclude", "dtype", "weights_sha256", "attached_at",
               "steering", "enabled", "monitoring", "error")  # fmt: skip
_PRESET = ("description", "interventions")
"""Fields that are compared, in the order in which they are shown."""


def difference(before: State, after: State) -> View:
    """The changes from one state to the other, as plain values ready for JSON.

    `{"from", "to": positions, "model": Changes, "saes": Entries, "attachments": Entries,
    "presets": Entries}`. Changes are
    `{field: {"before", "after"}}`, only for fields that differ; Entries are `{"added": [fields with their id],
    "removed": [same], "changed": [{"sae_id" (of a preset `name`), "changes", …}]}`. A changed attachment names the
    edits that were `added`, `removed` and `changed` too; an edit's key is (feature, method, positions). Numbers that
    are measured anew at every start, such as bytes on the device, are not a change.
    """
    saes = _entries(
        {sae_id: _sae(record) for sae_id, record in before.saes.items()},
        {sae_id: _sae(record) for sae_id, record in after.saes.items()},
    )
    was, now = _by_sae(before), _by_sae(after)
    attachments = _entries(
        {sae_id: _attachment(each) for sae_id, each in was.items()},
        {sae_id: _attachment(each) for sae_id, each in now.items()},
    )
    for entry in attachments["changed"]:
        one, other = was[entry["sae_id"]], now[entry["sae_id"]]
        entry["changes"].pop("steering", None)
        entry["steering"] = steering_difference(one.steering, other.steering)
    return {
        "from": before.position,
        "to": after.position,
        "model": _changes(_model(before.model), _model(after.model)),
        "saes": saes,
        "attachments": attachments,
        "presets": _entries(
            {name: _fields(preset, _PRESET) for name, preset in before.presets.items()},
            {name: _fields(preset, _PRESET) for name, preset in after.presets.items()},
            key="name",
        ),
    }


def steering_difference(before: Iterable[Edit], after: Iterable[Edit]) -> View:
    """`{"added": [edit], "removed": [edit], "changed": [{"before", "after"}], "reordered"}`, in the order of the
    later set. The order of edits does not change what they do, but the digest of the intervention."""
    was = {_key(edit): edit for edit in before}
    now = {_key(edit): edit for edit in after}
    return {
        "added": [_plain(edit) for key, edit in now.items() if key not in was],
        "removed": [_plain(edit) for key, edit in was.items() if key not in now],
        "changed": [
            {"before": _plain(was[key]), "after": _plain(edit)}
            for key, edit in now.items()
            if key in was and was[key] != edit
        ],
        "reordered": [key for key in was if key in now] != [key for key in now if key in was],
    }


def environment_sha256(environment: Mapping[str, Any]) -> str:
    """Digest of a model's environment, canonical JSON; its first 24 digits are in `system_fingerprint`."""
    return hashlib.sha256(msgspec.json.encode(environment, order="sorted")).hexdigest()


def _key(edit: Edit) -> tuple[int, str, bytes]:
    return edit.feature, edit.method, msgspec.json.encode(edit.positions)


def _by_sae(state: State) -> dict[str, AttachmentState]:
    """SAE → its attachment; while it is moved, the one that is still in force."""
    order = ("attached", "attaching", "detaching", "failed")
    chosen: dict[str, AttachmentState] = {}
    for each in sorted(state.attachments, key=lambda a: order.index(a.status)):
        chosen.setdefault(each.sae_id, each)
    return chosen


def _model(model: ModelState | None) -> View | None:
    if model is None:
        return None
    facts = model.facts
    return {
        "model_id": facts.model_id if facts else model.model,
        "revision": model.revision,
        "status": model.status,
        "commit": facts and facts.commit,
        "dtype": facts.dtype if facts else model.dtype,
        "device": facts.device if facts else model.device,
        "quantization": facts.quantization if facts else model.quantization,
        "environment_sha256": facts and environment_sha256(facts.environment),
        "error": _plain(model.error),
    }


def _sae(record: SaeRecord) -> View:
    return {**_fields(record, _SAE), "weights_sha256": record.weights_sha256 or None}


def _attachment(each: AttachmentState) -> View:
    fields = {**_fields(each, _ATTACHMENT), "weights_sha256": each.weights_sha256 or None}
    return {"steering_enabled" if name == "enabled" else name: value for name, value in fields.items()}


def _entries(before: Mapping[str, View], after: Mapping[str, View], key: str = "sae_id") -> View:
    return {
        "added": [{key: name, **fields} for name, fields in sorted(after.items()) if name not in before],
        "removed": [{key: name, **fields} for name, fields in sorted(before.items()) if name not in after],
        "changed": [
            {key: name, "changes": changes}
            for name, fields in sorted(after.items())
            if name in before and (changes := _changes(before[name], fields))
        ],
    }


def _changes(before: View | None, after: View | None) -> View:
    """Fields that differ. On a side that is missing, every field counts as None."""
    names = dict.fromkeys([*(before or {}), *(after or {})])
    pairs = {name: {"before": (before or {}).get(name), "after": (after or {}).get(name)} for name in names}
    return {name: pair for name, pair in pairs.items() if pair["before"] != pair["after"]}


def _fields(of: SaeRecord | AttachmentState | Preset, names: Iterable[str]) -> View:
    return {name: _plain(getattr(of, name)) for name in names}


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value)
