"""The state of the service worked out anew from exported events: plain dicts, nothing of the package.

What `/api/state`, `log state` and the live service say is held against this. It was written from
the shapes of the events, not from `evolve`, and shares no line with it; keep it so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

Fields = dict[str, Any]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
GIVEN_UP = 3
"""Deaths of the process under one effect that are enough."""
ASKED = {"ModelLoadRequested": "LoadModel", "AttachRequested": "Attach", "DetachRequested": "Detach",
         "DeleteRequested": "Delete"}  # fmt: skip
ENDS = {"ModelLoaded", "ModelLoadFailed", "DownloadCompleted", "DownloadFailed", "DownloadCancelled", "SaeAttached",
        "AttachFailed", "SaeDeleted", "DeleteFailed"}  # fmt: skip
GIVEN = ("named_as", "layer", "made_from")
DETAILS = ("format", "architecture", "d_in", "d_sae", "d_out", "dtype", "trained_on", "trained_layer", "hook_name",
           "hook_point", "hook_point_out", "prepend_bos", "median_norm")  # fmt: skip


def views(lines: Iterable[bytes | str]) -> Iterator[tuple[int, Fields]]:
    """Position and state after it, from 0 on, for events as an export or `/api/log` has them, one JSON a line."""
    books = Books()
    yield 0, books.view()
    for line in lines:
        books.enter(json.loads(line))
        yield books.position, books.view()


def last_view(events: Iterable[Fields]) -> Fields:
    """The state after all of these events."""
    books = Books()
    for event in events:
        books.enter(event)
    return books.view()


class Books:
    """Ledgers that each event is entered into."""

    def __init__(self) -> None:
        self.position = 0
        self.model: Fields | None = None
        self.saes: dict[str, Fields] = {}
        self.places: list[Fields] = []
        """Attachments in their order: each has `asked`, the position of its AttachRequested."""
        self.open: dict[str, Fields] = {}
        self.texts: dict[str, Fields] = {}
        self.presets: dict[str, Fields] = {}

    def enter(self, event: Fields) -> None:
        self.position = event["position"]
        data, kind = event["data"], event["type"]
        if data is None or event["schema"] != 1:
            return
        at, time = event["position"], event["time"]
        for ledger in (self._models, self._files, self._attachments, self._texts, self._presets):
            ledger(kind, data, at, time)
        self._commands(kind, data, event)

    # — the model —

    def _models(self, kind: str, data: Fields, at: int, _: str) -> None:
        model = self.model
        if kind == "ModelLoadRequested" and data.get("joined") is None and not data.get("reused"):
            self.model = {"asked": at, "status": "loading", "facts": None, "error": None, "deaths": 0, "again": False}
            self.model |= {name: data[name] for name in ("model", "revision", "dtype", "device")}
            self.model["quantization"] = data.get("quantization")
        elif kind == "ModelUnloaded":
            self.model = None
        elif model is None:
            pass
        elif kind == "ActorStarted":
            if model["status"] == "loaded":
                model |= {"status": "loading", "again": True, "deaths": 0, "error": None}
            elif model["status"] == "error" and model["again"] and model["deaths"] < GIVEN_UP:
                model |= {"status": "loading", "error": None}
        elif data.get("request_position") != model["asked"]:
            pass
        elif kind == "ModelLoaded":
            model |= {"status": "loaded", "facts": data["model"], "error": None, "deaths": 0}
        elif kind == "ModelLoadFailed":
            model |= {"status": "error", "facts": None, "error": data["error"], "again": data.get("restored", False)}
            model["deaths"] = model["deaths"] if model["deaths"] >= GIVEN_UP else 0
        elif kind == "EffectInterrupted" and data["effect"] == "load_model":
            model["deaths"] = data["attempt"]

    # — SAEs on disk —

    def _files(self, kind: str, data: Fields, at: int, time: str) -> None:
        name = data.get("sae_id")
        sae = self.saes.get(name) if name is not None else None
        if kind == "DownloadRequested":
            if sae is None:
                sae = {name: data.get(name) for name in ("repository_id", "revision", "path", *GIVEN)}
                sae |= {"source": data.get("source", "hub"), "created": time, "commit": None, "files": []}
                sae |= {"about": None, "weights": "", "weights_files": [], "error": None}
                sae |= {"asked": at, "status": "downloading"}
                self.saes[data["sae_id"]] = sae
            elif data.get("joined") is None and not data.get("reused"):
                sae |= {"asked": at, "status": "downloading", "error": None}
                sae["coming"] = data.get("path") if sae["source"] == "import" else None
            return
        if kind == "SaeDeleted":
            self.saes.pop(data["sae_id"], None)
            self.places = [p for p in self.places if p["sae_id"] != name or p["status"] != "failed"]
        if sae is None or data.get("request_position", at) not in (sae["asked"], at):
            return
        settled = "error" if sae["about"] is None else "cached"
        if kind == "DownloadCompleted":
            sae |= {"status": "cached", "commit": data.get("commit"), "files": data["files"], "about": data["sae"]}
            sae |= {"weights": data["weights_sha256"], "error": None}
            if not data.get("reused"):
                sae["path"] = sae.get("coming") or sae["path"]
            sae["weights_files"] = data.get("weights_files") or _weights_files(data["files"], data["weights_sha256"])
        elif kind in ("DownloadFailed", "DeleteFailed"):
            sae |= {"status": settled, "error": data["error"]}
        elif kind == "DownloadCancelled" and settled == "error":
            del self.saes[data["sae_id"]]
        elif kind == "DownloadCancelled":
            sae["status"] = "cached"
        elif kind == "DeleteRequested":
            sae |= {"status": "deleting", "asked": at, "error": None}

    # — SAEs on the model —

    def _attachments(self, kind: str, data: Fields, at: int, time: str) -> None:
        match kind:
            case "ActorStarted":
                self._start(data)
            case "EffectInterrupted" if data["effect"] in ("attach", "detach"):
                for place in self.places:
                    if data["request_position"] in (place["asked"], place.get("leaving")):
                        place["deaths"] = data["attempt"]
            case "AttachRequested":
                place = {"asked": at, "sae_id": data["sae_id"], "status": "attaching", "position": at, "deaths": 0}
                place |= {"model": self.model["asked"] if self.model is not None else 0, "weights": "", "since": None}
                place |= {"memory_bytes": 0, "device_bytes": 0, "steering": [], "enabled": True, "error": None}
                place |= {"monitor": None, "monitored": None}
                self.places.append(place | _where(data))
            case "SaeAttached":
                for place in self._coming(data):
                    place.update(_where(data), status="attached", position=at, error=None, deaths=0)
                    place |= {"since": place["since"] or time, "weights": data.get("weights_sha256", "")}
                    place |= {"steering": data.get("steering", []), "enabled": data.get("enabled", True)}
                    place |= {name: data.get(name, 0) for name in ("memory_bytes", "device_bytes")}
                    place |= {"monitor": data.get("monitoring"), "monitored": at}
                if not data.get("restored"):
                    self.places = [place for place in self.places if place["status"] != "failed"]
            case "AttachFailed" if data.get("restored"):
                for place in self._coming(data):
                    deaths = place["deaths"] if place["deaths"] >= GIVEN_UP else 0
                    place |= {"status": "failed", "position": at, "error": data["error"], "deaths": deaths}
            case "AttachFailed":
                gone = self._coming(data)
                self.places = [place for place in self.places if place not in gone]
            case "DetachRequested":
                self._detach(data["sae_id"], at)
            case "SaeDetached":
                self.places = [place for place in self.places if place["asked"] != data["attach_position"]]
            case "SteeringChanged":
                for place in self.places:
                    if (place["sae_id"], place["status"]) == (data["sae_id"], "attached"):
                        place |= {"steering": data["features"], "enabled": data.get("enabled", True), "position": at}
            case "MonitoringChanged":
                wanted = {"features": data.get("features"), "top_k": data.get("top_k", 10)}
                wanted["exclude"] = data.get("exclude", [])
                for place in self.places:
                    if (place["sae_id"], place["status"]) == (data["sae_id"], "attached"):
                        place |= {"monitor": wanted if data["enabled"] else None, "monitored": at}

    def _coming(self, data: Fields) -> list[Fields]:
        return [p for p in self.places if p["asked"] == data["request_position"] and p["status"] == "attaching"]

    def _detach(self, sae_id: str, at: int) -> None:
        mine = {p["status"]: p for p in reversed(self.places) if p["sae_id"] == sae_id and p["status"] != "detaching"}
        out = next((mine[status] for status in ("attached", "attaching", "failed") if status in mine), None)
        self.places = [
            place
            for place in self.places
            if place is out
            or place["status"] == "detaching"
            or (place["sae_id"] != sae_id and place["status"] != "failed")
        ]
        if out is not None:
            out |= {"status": "detaching", "leaving": at, "steering": [], "monitor": None, "deaths": 0, "position": at}

    def _start(self, data: Fields) -> None:
        """Nothing is on the device any more; what was there is to come back, and what failed to may try again."""
        model, before = self.model, [dict(place) for place in self.places]
        room = data.get("max_attachments", 1) - sum(place["status"] != "failed" for place in before)
        for number, place in enumerate(self.places):
            sae = self.saes.get(place["sae_id"])
            if place["status"] == "attached":
                place |= {"status": "attaching", "deaths": 0}
            elif place["status"] != "failed" or room <= 0 or model is None or sae is None:
                pass
            elif (
                place["deaths"] < GIVEN_UP
                and (model["status"], model["asked"]) == ("loading", place["model"])
                and (sae["status"], sae["weights"]) == ("cached", place["weights"])
                and not any(p["sae_id"] == place["sae_id"] for i, p in enumerate(before) if i != number)
            ):
                place |= {"status": "attaching", "error": None}
                room -= 1

    # — texts and commands —

    def _texts(self, kind: str, data: Fields, at: int, _: str) -> None:
        if kind == "GenerationStarted":
            stop = data.get("stop_when")
            read = [*data["intervention"], *data.get("watched", []), *([stop["sae"]] if stop else [])]
            named = list(dict.fromkeys(sae["sae_id"] for sae in read))
            begun = {"generation_id": data["generation_id"], "position": at, "sae_ids": named}
            self.texts[data["generation_id"]] = begun | {"intervention_sha256": data["intervention_sha256"]}
        elif kind == "GenerationFinished":
            self.texts.pop(data["generation_id"], None)

    def _presets(self, kind: str, data: Fields, at: int, time: str) -> None:
        if kind == "PresetSaved":
            usual: Fields = {"weights_files": [], "mode": "steer", "steering": [], "asked": [], "exclude": None}
            saved = {"name": data["name"], "description": data.get("description"), "position": at, "saved_at": time}
            self.presets[data["name"]] = saved | {"interventions": [usual | each for each in data["interventions"]]}
        elif kind == "PresetDeleted":
            self.presets.pop(data["name"], None)

    def _commands(self, kind: str, data: Fields, event: Fields) -> None:
        name = ASKED.get(kind)
        if kind == "GenerationStarted":
            self.texts[data["generation_id"]] |= {name: event[name] for name in ("command_id", "principal")}
        if kind == "DownloadRequested":
            name = {"import": "Import", "vectors": "KeepVectors"}.get(data.get("source", "hub"), "Download")
        if name is not None and event["command_id"] is not None:
            self.open[event["command_id"]] = {
                "command_id": event["command_id"],
                "type": name,
                "position": event["position"],
                "request_position": data.get("joined") or event["position"],
                "principal": event["principal"],
            }
        elif kind in ENDS or (kind == "SaeDetached" and data.get("reason", "requested") != "replaced"):
            left = {k: v for k, v in self.open.items() if v["request_position"] != data["request_position"]}
            self.open = left

    # — as it is shown —

    def view(self) -> Fields:
        """What `/api/state` should answer."""
        attached = [place for place in self.places if place["status"] == "attached"]
        return json.loads(  # type: ignore[no-any-return]  # a copy that later events leave alone
            json.dumps(
                {
                    "position": self.position,
                    "model": self._model_shown(),
                    "saes": {sae_id: self._sae_shown(sae_id, sae) for sae_id, sae in sorted(self.saes.items())},
                    "attachments": [_place_shown(place) for place in attached],
                    "monitors": [
                        {"sae_id": place["sae_id"], "exclude": [], **place["monitor"], "position": place["monitored"]}
                        for place in attached
                        if place["monitor"] is not None
                    ],
                    "commands": list(self.open.values()),
                    "generations": list(self.texts.values()),
                    "presets": [preset for _, preset in sorted(self.presets.items())],
                }
            )
        )

    def _model_shown(self) -> Fields | None:
        if (model := self.model) is None:
            return None
        facts = model["facts"] or {}
        shown = {"status": model["status"], "model_id": facts.get("model_id", model["model"])}
        shown |= {name: facts.get(name, model[name]) for name in ("dtype", "device")}
        shown |= {"revision": model["revision"], "error": model["error"]}
        scheme = facts.get("environment", {}).get("quantization") or {}
        shown["quantization"] = scheme.get("scheme", model["quantization"])
        names = ("commit", "model_type", "num_layers", "hidden_size", "context_length", "memory_bytes")
        return shown | {name: facts.get(name) for name in names}

    def _sae_shown(self, sae_id: str, sae: Fields) -> Fields:
        mine = [place for place in self.places if place["sae_id"] == sae_id]
        alive = [place for place in mine if place["status"] != "failed"]
        lost = mine[0] if mine and not alive else None
        status = sae["status"]
        if alive:
            status = "attaching" if alive[0]["status"] == "attaching" else "attached"
        elif lost is not None and status == "cached":
            status = "error"
        about = sae["about"] or {}
        shown = {name: sae[name] for name in ("repository_id", "revision", "commit", "path", "source", *GIVEN)}
        shown |= {name: about.get(name) for name in DETAILS}
        shown |= {"sae_id": sae_id, "status": status, "files": sae["files"], "created_at": sae["created"]}
        shown |= {"name": (sae["path"] or sae["repository_id"] or sae_id).rstrip("/").split("/")[-1]}
        if sae["source"] == "vectors":
            shown["name"] = sae_id.rpartition("-")[0]
        shown |= {"file_size_bytes": sum(file["bytes"] for file in sae["files"])}
        shown |= {"ignored": about.get("ignored", {}), "warnings": about.get("warnings", [])}
        shown |= {"names": about.get("names", [])}
        shown |= {"memory_bytes": _estimate(about, mine[0]["dtype"] if mine else "float32")}
        return shown | {
            "weights_sha256": sae["weights"] or None,
            "weights_files": sae["weights_files"],
            "error": sae["error"] if lost is None else lost["error"],
        }


def _weights_files(files: list[Fields], digest: str) -> list[Fields]:
    """Of an event that names none: the file whose digest, or whose name and digest, were digested into `digest`."""
    for file in files:
        parts = file["path"].split("/")
        lists = ["/".join(parts[n:]) + "\0" + file["sha256"] + "\n" for n in range(len(parts))]
        if digest in (file["sha256"], *(hashlib.sha256(text.encode()).hexdigest() for text in lists)):
            return [{"path": file["path"], "sha256": file["sha256"]}]
    return []


def _where(data: Fields) -> Fields:
    return {
        "hook_point": data["hook_point"],
        "hook_point_out": data.get("hook_point_out"),
        "mode": data.get("mode", "steer"),
        "exclude": data.get("exclude"),
        "dtype": data.get("dtype", "float32"),
    }


def _place_shown(place: Fields) -> Fields:
    same = ("sae_id", "hook_point", "hook_point_out", "mode", "exclude", "dtype", "memory_bytes", "device_bytes",
            "steering", "position")  # fmt: skip
    return {name: place[name] for name in same} | {
        "is_attached": True,
        "layer": place["hook_point"]["layer"],
        "attached_at": place["since"],
        "steering_enabled": place["enabled"],
    }


def _estimate(about: Fields, dtype: str) -> int | None:
    if not about:
        return None
    d_in, d_sae, d_out = (int(about[name]) for name in ("d_in", "d_sae", "d_out"))
    if about["architecture"] == "vectors":
        return d_sae * d_out * BYTES[dtype]
    threshold = d_sae if about.get("has_threshold") else 0
    return (d_in * d_sae + d_sae + d_sae * d_out + d_out + threshold) * BYTES[dtype]
