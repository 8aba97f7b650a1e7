"""Explain from an exported event log what was active for an answer, with nothing but Python's standard library.

    python explain.py GENERATION        its model, SAEs and edits, since which events, and whether the digests agree
    python explain.py --list            the answers in the log

GENERATION is the id of an answer, its tag, or the position of its first or last event. `verify.py`,
`explain_words.py` and `words.py` must lie beside this file, as in the export: the chain is verified while it is read,
and what comes after a damage is not used.

Exit code 0: explained, from a log that verifies. 65: the log is damaged, or a digest is not that of the record. 64:
there is no such answer.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def beside(name: str) -> Any:
    """A module of the export, from this file's folder: an isolated Python does not look there."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).resolve().with_name(f"{name}.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


words = beside("explain_words")
words.plain = beside("words")


class Text:
    """One generation: the event that began it, what was in place then, the event that ended it."""

    def __init__(self, began: Event, log: Log) -> None:
        self.began, self.started = began, began["data"]
        self.ended: Event | None = None
        self.model, self.model_since = log.model, tuple(log.model_since)
        self.saes = [log.found(sae, began) for sae in (self.started or {}).get("intervention", ())]

    @property
    def finished(self) -> Event:
        return (self.ended or {}).get("data") or {}

    def told(self, name: str) -> Any:
        return (self.started or {}).get(name, self.finished.get(name))


class Log:
    """Follows the events, and keeps the generations that `wanted` names: an id, a tag, or a position."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self.by_position: list[Text] = []
        self.by_id: list[Text] = []
        self.by_tag: list[Text] = []
        self.listed: list[str] = []
        self.model: Any = None
        self.model_since: list[Event] = []
        self._open: dict[int, Text] = {}
        self._requested: dict[str, Event] = {}
        self._downloads: dict[tuple[str, str], Event] = {}
        self._attached: dict[int, list[Event]] = {}
        self._steered: dict[str, Event] = {}

    def feed(self, event: Event) -> None:
        handle = getattr(self, f"_{event['type']}", None)
        if event["type"] == "GenerationStarted":
            self._begin(event)
        elif handle is not None and event["data"] is not None:
            handle(event, event["data"])

    def texts(self) -> list[Text]:
        return self.by_position or self.by_id or self.by_tag

    def found(self, sae: Event, began: Event) -> Event:
        """Where an SAE of an intervention came from, and since which events it was as it was."""
        name, download = sae["sae_id"], self._downloads.get((sae["sae_id"], sae["weights_sha256"]))
        since = [*([download] if download else []), *self._attached.get(sae.get("attach_position", 0), ())]
        steered = began if began["data"].get("own_steering") else self._steered.get(name)
        since += [steered] if steered is not None and steered not in since else []
        return {"sae": sae, "download": download, "request": self._requested.get(name), "since": since}

    def _begin(self, event: Event) -> None:
        text = self._open[event["position"]] = Text(event, self)
        started = event["data"] or {}
        self._keep(text, started.get("generation_id"), event["position"])
        if self.wanted is not None and started.get("tag") == self.wanted:
            self.by_tag.append(text)
        label = f"{event['position']:>6}  {event['time']}  {started.get('generation_id', 'erased')}"
        self.listed.append(f"{label}  {event['principal']}  {started.get('tag') or ''}".rstrip())

    def _keep(self, text: Text, name: str | None, position: int) -> None:
        if self.wanted == str(position) and text not in self.by_position:
            self.by_position.append(text)
        if self.wanted is not None and name == self.wanted and text not in self.by_id:
            self.by_id.append(text)

    def _GenerationFinished(self, event: Event, data: Event) -> None:  # noqa: N802 - as the events are called
        text = self._open.pop(data["started_position"], None)
        if text is not None:
            text.ended = event
            self._keep(text, data["generation_id"], event["position"])

    def _ModelLoadRequested(self, event: Event, data: Event) -> None:  # noqa: N802
        if not data.get("reused") and data.get("joined") is None:
            self.model, self.model_since = None, [event]

    def _ModelLoaded(self, event: Event, data: Event) -> None:  # noqa: N802
        if self.model_since and data["request_position"] == self.model_since[0]["position"]:
            self.model, self.model_since = data["model"], [*self.model_since[:2], event]

    def _ModelUnloaded(self, _: Event, __: Event) -> None:  # noqa: N802
        self.model, self.model_since = None, []

    def _DownloadRequested(self, event: Event, data: Event) -> None:  # noqa: N802
        if not data.get("reused") and data.get("joined") is None:
            self._requested[data["sae_id"]] = event

    def _DownloadCompleted(self, event: Event, data: Event) -> None:  # noqa: N802
        key = (data["sae_id"], data["weights_sha256"])
        if not data.get("reused") or key not in self._downloads:
            self._downloads[key] = event

    def _AttachRequested(self, event: Event, _: Event) -> None:  # noqa: N802
        self._attached[event["position"]] = [event]

    def _SaeAttached(self, event: Event, data: Event) -> None:  # noqa: N802
        since = self._attached.get(data["request_position"])
        if since is not None:
            since[2:] = [event]
            if (data.get("steering") or not data.get("enabled", True)) and data["sae_id"] not in self._steered:
                self._steered[data["sae_id"]] = event

    def _SaeDetached(self, _: Event, data: Event) -> None:  # noqa: N802
        self._attached.pop(data["attach_position"], None)
        if not any(events[0]["data"]["sae_id"] == data["sae_id"] for events in self._attached.values()):
            self._steered.pop(data["sae_id"], None)

    def _SteeringChanged(self, event: Event, data: Event) -> None:  # noqa: N802
        self._steered[data["sae_id"]] = event


# — digests —


def intervention_sha256(intervention: Iterable[Event]) -> str:
    """Without the attach position, and without an `exclude` that was not given."""
    shown = [{k: v for k, v in sae.items() if k != "attach_position" and (k, v) != ("exclude", None)}
             for sae in intervention]  # fmt: skip
    return hashlib.sha256(words.canonical(shown).encode()).hexdigest()


def digests(text: Text) -> Iterator[tuple[str, bool]]:
    """Lines about the intervention's digest, and whether it is as it should be."""
    if text.started is None:
        return
    recorded = [each["intervention_sha256"] for each in (text.started, text.finished) if each]
    recomputed = intervention_sha256(text.started["intervention"])
    same = set(recorded) == {recomputed}
    yield f"digest       recorded   {recorded[0]}", True
    yield f"             recomputed {recomputed}: {'the same' if same else 'DIFFERENT'}", same


def token_digest(salt: str, ids: str) -> str:
    tokens = [int(each) for each in ids.replace(",", " ").split()]
    return hashlib.sha256(bytes.fromhex(salt) + b"".join(each.to_bytes(4, "little") for each in tokens)).hexdigest()


def checked(text: Text, options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    for name, ids in (("prompt", options.prompt_ids), ("output", options.output_ids)):
        if ids is not None:
            recorded = text.finished.get(f"{name}_sha256") or ""
            same = bool(recorded) and token_digest(text.finished["salt"], ids) == recorded
            yield f"  {name:<10} the token ids given are {'those' if same else 'NOT those'} of this answer", same


# — the program —


def read(folder: Path, wanted: str | None) -> tuple[Log, str, bool]:
    """The log up to its end or its first bad event; what the verification says, and whether all is well."""
    verify = beside("verify")
    about, log, last = json.loads((folder / "log.json").read_bytes()), Log(wanted), [b""]
    end: tuple[int, str] = (0, "")

    def remembered(lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            last[0] = line
            yield line

    try:
        with (folder / "events.ndjson").open("rb") as lines:
            for end in verify.walk(remembered(lines), about["log_id"]):
                if end[0] > 0:
                    log.feed(json.loads(last[0], parse_float=words.Number.of))
    except verify.BadEventError as damage:
        return log, f"damaged: {damage}; everything shown here lies before it", False
    if end != (about["head"]["position"], about["head"]["hash"]):
        return log, f"damaged: it ends at {end[0]}, not at its head {about['head']['position']}", False
    return log, f"verified: {end[0]} events, head {end[0]} {end[1]}", True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", nargs="?", metavar="GENERATION", help="id, tag or position")
    parser.add_argument("--list", action="store_true", help="the answers in the log, one a line")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="where the export lies")
    parser.add_argument("--json", action="store_true", help="the events of the answer, one a line")
    parser.add_argument("--prompt-ids", metavar="1,2,3", help="check that these are the prompt's token ids")
    parser.add_argument("--output-ids", metavar="1,2,3", help="check that these are the answer's token ids")
    options = parser.parse_args(arguments)
    if options.list == (options.generation is not None):
        parser.error("give GENERATION or --list")
    try:
        log, told, sound = read(options.folder, options.generation)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"the export cannot be read: {error}", file=sys.stderr)
        return 65
    texts = log.texts()
    if not options.list and not texts:
        print(f"the log has no answer {options.generation}; --list shows them", file=sys.stderr)
        return 64 if sound else 65
    if options.list:
        print("\n".join(log.listed))
    for text in texts:
        if options.json:
            print("\n".join(json.dumps(each, ensure_ascii=False) for each in (text.began, text.ended) if each))
            continue
        print("\n".join(words.explanation(text)))
        for line, good in (*digests(text), *checked(text, options)):
            print(line)
            sound = sound and good
    print(f"log          {told}", file=sys.stderr if options.json else sys.stdout)
    return 0 if sound else 65


if __name__ == "__main__":
    sys.exit(main())
