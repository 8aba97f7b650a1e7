"""Answers as text for a person. Control characters from outside are removed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...client import StreamEvent
from ...domain.words import monitoring_in_words

Answer = dict[str, Any]

EVENT_WIDTH = 200
_OUT_OF_FORCE = " (out of force)"
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def plain(text: object) -> str:
    """Without control characters, except line ends and tabs."""
    return str(text).translate(_CONTROLS)


def size(count: int | None) -> str:
    """Bytes for a person: `5.3 MB`, powers of ten."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be; None is a dash."""
    cells = [list(head)] + [["-" if cell is None else plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def hook(point: Answer | None) -> str:
    if not point:
        return "-"
    side = {"gain": " before the gain of its norm", "norm": " before its norm"}.get(point.get("before") or "", "")
    return f"{point['kind']}.{point['layer']}{side}"


def edit(one: Answer) -> str:
    """`584=85`, and whatever is not an `add` at every position."""
    defaults: Answer = {"method": "add", "positions": "all", "exclude": [], "unit": "raw", "sae_id": None, "when": None}
    more = [f"{key} {_short(one[key])}" for key, usual in defaults.items() if one.get(key, usual) != usual]
    return f"{one['feature']}={one['strength']:g}" + (f" ({', '.join(more)})" if more else "")


def _short(value: object) -> str:
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return " and ".join(value) or "nothing"
    return value if isinstance(value, str) else json.dumps(value)


def steering(answer: Answer) -> str:
    edits = "; ".join(edit(one) for one in answer["features"]) or "no edits"
    return plain(f"{edits}{'' if answer['enabled'] else _OUT_OF_FORCE}   [position {answer['position']}]")


def status(answer: Answer) -> str:
    model, readiness = answer["model"], answer["readiness"]
    if answer["ready"]:
        lines = [str(readiness.get("status", "ready"))]
        lines += [f"  lost      {each['sae_id']}: {_reason(each)}" for each in readiness.get("degraded") or ()]
    else:
        lines = [f"not ready: {readiness.get('detail', 'no reason given')}"]
    if model["model_id"] is None:
        lines.append("model       none")
    else:
        shape = f"{model['num_layers']} layers of {model['hidden_size']}" if model["num_layers"] else model["status"]
        held = ", ".join(filter(None, (model.get("quantization"), model["dtype"])))
        lines.append(f"model       {model['model_id']} ({held} on {model['device']}, {shape})")
    attachments = answer["attachment"]["attachments"]
    for each in attachments:
        lines += _attachment(each)
    back = readiness.get("coming_back") or ()
    for each in back:
        where = f"{each['sae_id']} at {hook(each['hook_point'])}, {each['mode']}"
        lines.append(f"attaching   {where}: it is being attached again")
    others = [sae_id for sae_id in answer["attaching"] if sae_id not in [each["sae_id"] for each in back]]
    lines += [f"attaching   {sae_id}" for sae_id in others]
    if not (attachments or back or others):
        lines.append("attached    nothing")
    return plain("\n".join(lines))


def _attachment(each: Answer) -> list[str]:
    """The line of an attachment and those of its edits, as of `/api/saes/attachment` and `/api/state`."""
    force = "" if each["steering_enabled"] else _OUT_OF_FORCE
    edits = [f"  edit      {edit(one)}{force}" for one in each["steering"] or ()]
    passed = each.get("exclude")
    mode = each["mode"] if passed is None else f"{each['mode']} (exclude {_short(passed)})"
    return [f"attached    {each['sae_id']} at {hook(each['hook_point'])}, {mode}", *edits]


def _reason(each: Answer) -> str:
    return str((each.get("error") or {}).get("detail", "unknown"))


def saes(answer: Answer) -> str:
    head = ("SAE", "STATUS", "HOOK", "ARCHITECTURE", "D_IN", "D_SAE", "ON DISK")
    rows = [
        (
            sae["sae_id"],
            sae["status"],
            hook(sae["hook_point"]),
            sae["architecture"],
            sae["d_in"],
            sae["d_sae"],
            size(sae["file_size_bytes"]),
        )
        for sae in answer["saes"]
    ]
    if not rows:
        return "no SAEs"
    wrong = [plain(f"{sae['sae_id']}: {_reason(sae)}") for sae in answer["saes"] if sae["error"]]
    return "\n".join([table(head, rows), *wrong])


def catalog(answer: Sequence[Answer]) -> str:
    head = ("PATH", "FORMAT", "HOOK", "D_IN", "D_SAE", "SIZE")
    rows = [
        (
            entry["path"] or "(root)",
            entry["format"],
            entry.get("hook_name"),
            entry.get("d_in"),
            entry.get("d_sae"),
            size(entry["file_size_bytes"]),
        )
        for entry in answer
    ]
    named = [
        plain(f"{entry['named_as']} is {entry['path'] or 'the root'} in {entry['repository_id']}@{entry['revision']}")
        for entry in answer
        if "named_as" in entry
    ]
    return "\n".join([table(head, rows), *named]) if rows else "no SAEs in this repository"


def fit(answer: Answer) -> str:
    assumed = answer["assumes"]
    verdict = {True: "fits", False: "does not fit", None: "free memory unknown"}[answer["fits"]]
    keys = f"{size(answer['kv_bytes_per_token'])} a token, {assumed['context']} tokens counted"
    held = ", ".join(filter(None, (assumed["model_type"], assumed.get("quantization"), assumed["dtype"])))
    lines = [
        f"{answer['model']}: {verdict} ({held} on {assumed['device']})",
        f"  weights          {size(answer['weights_bytes'])}",
        f"  keys and values  {keys}",
        f"  SAE              {size(answer['sae_bytes'])}",
        f"  needed           {size(answer['needed_bytes'])}",
        f"  free             {size(answer['free_bytes'])}",
        f"  longest text     {answer['max_context']} tokens",
    ]
    return plain("\n".join(lines))


def progress(now: Answer) -> tuple[str, int, int, str]:
    """A `download_progress` as the bar takes it: stage, bytes, of how many, and what holds just now."""
    phase, left = str(now["phase"]), now.get("seconds_left")
    if phase == "waiting":
        return plain(f"waiting: {now.get('reason')}"), now["bytes"], now["total"], _seconds(left)
    stage = now.get("file") if phase in ("body", "verifying") else None
    rate = f"{size(int(now['rate']))}/s" if phase == "body" and now.get("rate") else ""
    return plain(stage or phase), now["bytes"], now["total"], " ".join(filter(None, (rate, _seconds(left))))


def _seconds(left: float | None) -> str:
    """Time that is left: `4 s`, `3 min`, `2.5 h`."""
    if left is None:
        return ""
    return f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min" if left < 7200 else f"{left / 3600:.1f} h"


def downloaded(answer: Answer) -> str:
    done = next((event for event in answer["events"] if event["type"] == "DownloadCompleted"), None)
    files = done["data"]["files"] if done else ()
    reused = " (was there)" if done and done["data"].get("reused") else ""
    total = size(sum(file["bytes"] for file in files))
    return plain(f"{answer['sae_id']}: {len(files)} files, {total}{reused}   [position {answer['position']}]")


def attached(answer: Answer) -> str:
    lines = [
        f"{answer['sae_id']} attached at {hook(answer['hook_point'])}, {size(answer['memory_bytes'])}"
        f"   [position {answer['position']}]"
    ]
    return plain("\n".join([*lines, *(f"warning: {each}" for each in answer.get("warnings") or ())]))


def freed(answer: Answer) -> str:
    done, freed_bytes = answer["status"], size(answer["freed_bytes"])
    return plain(f"{answer['sae_id']} {done}, {freed_bytes} freed   [position {answer['position']}]")


def piece(chunk: Answer) -> str:
    """The text in one chunk of a completion or a chat."""
    return "".join(plain(c.get("text") or (c.get("delta") or {}).get("content") or "") for c in chunk["choices"])


def thought(chunk: Answer) -> str:
    """What is thought in one chunk of a chat."""
    return "".join(plain((c.get("delta") or {}).get("reasoning_content") or "") for c in chunk["choices"])


def event(one: Answer) -> str:
    """One line; the data cut where it gets long."""
    data = json.dumps(one["data"], ensure_ascii=False, separators=(",", ":"))
    line = f"{one['position']:>6}  {one['time']}  {one['type']:<20}  {one['principal']}  {data}"
    return plain(line if len(line) <= EVENT_WIDTH else line[: EVENT_WIDTH - 1] + "…")


def passing(one: StreamEvent) -> str:
    """What is not in the log: progress, and the stream's own words."""
    return plain(f"     ·  {one.type}  {json.dumps(one.data, ensure_ascii=False)}"[:EVENT_WIDTH])


def counted(events: int) -> str:
    return f"{events} event{'' if events == 1 else 's'}"


def name(path: Path) -> str:
    """The path as printable text, whatever its bytes."""
    return os.fsencode(path).decode(errors="replace")


def verification(answer: Answer) -> str:
    head = answer["head"]
    if answer.get("unproven"):
        return plain(
            f"unproven: {answer['events']} events verify, head {head['position']} {head['hash']}\n"
            f"{answer['detail']}. Put the file back, or give `log verify` a head that you noted: --head POSITION:HASH"
        )
    if answer["ok"]:
        warning = ""
        if skewed := answer.get("clock_skew"):
            warning = f"\nwarning: the clock went back before {', '.join(map(str, skewed))}; positions give the order"
        return f"ok: {answer['events']} events, head {head['position']} {head['hash']}{warning}"
    where = f" at position {answer['first_bad']}" if answer.get("first_bad") is not None else ""
    return plain(f"damaged{where}: {answer.get('detail') or 'the chain does not verify'}")


def state(answer: Answer) -> str:
    """The state that a log comes to, as `status` shows the live one."""
    lines = [f"position    {answer['position']}"]
    model = answer["model"]
    if model is not None:
        lines.append(f"model       {model['model_id']} ({model['status']}, {model['dtype']} on {model['device']})")
    else:
        lines.append("model       none")
    lines += [f"sae         {sae_id}: {sae['status']}" for sae_id, sae in answer["saes"].items()]
    for each in answer["attachments"]:
        lines += _attachment(each)
    for each in answer["monitors"]:
        lines.append(f"monitored   {each['sae_id']}: {monitoring_in_words(each)}")
    lines += [f"preset      {each['name']}, saved at position {each['position']}" for each in answer["presets"]]
    lines += [
        f"labels      {each['labels']} of {sae_id} by {each['source']}, imported at position {each['position']}"
        for sae_id, sources in answer["labels"].items()
        for each in sources
    ]
    lines += [f"open        {one['type']} {one['command_id']}" for one in answer["commands"]]
    lines += [f"running     generation {one['generation_id']}" for one in answer["generations"]]
    return plain("\n".join(lines))
