"""`GET /metrics`: metrics in the Prometheus text format (0.0.4).

Counters and distributions belong to this life of the process; the rest is read from the state on request.
Label values are the service's own words (types, routes, statuses), so that their number is bounded.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from litestar import Response

from ... import __version__
from ...telemetry.metrics import Counter, Histogram, Labels
from ..context import Context, context
from ..operations import operation
from ..types import Answer, AnyRequest

MEDIA_TYPE = "text/plain; version=0.0.4"
"""The framework adds the charset."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_BORN = time.time()


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric: its name, what it counts, and its samples as (suffix, label names and values, value)."""

    name: str
    kind: str
    about: str
    samples: Iterable[tuple[str, tuple[tuple[str, str], ...], float]]

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for suffix, labels, value in self.samples:
            told = ",".join(f'{name}="{_escaped(each)}"' for name, each in labels)
            yield f"{self.name}{suffix}{{{told}}} {value:.17g}" if told else f"{self.name}{suffix} {value:.17g}"


@operation("GET", "/metrics", "Metrics in the Prometheus text format",
           answers=((200, "text/plain"),))  # fmt: skip
async def get_metrics(request: AnyRequest) -> Answer:
    families = [*of_the_service(context(request)), *of_the_process()]
    text = "\n".join(line for family in families for line in family.lines()) + "\n"
    return Response(content=text.encode(), media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})


def of_the_service(service: Context) -> Iterator[MetricFamily]:
    actor, texts, requests = service.actor, service.texts, service.requests
    state, counts = actor.state, actor.counts
    yield _labelled("build_info", "gauge", "1, with the version of the package", ("version",), [((__version__,), 1)])
    yield _gauge("log_position", "Position of the last event", state.position)
    yield _gauge("log_read_only", "1 once nothing can be written any more", actor.read_only is not None)
    yield _counter("events_total", "Events appended", ("type",), counts.events)
    yield _distribution("append_seconds", "Seconds until an append was durable", counts.append_seconds)
    yield _counter("commands_total", "Commands by what became of them; accepted ones count again when they end",
                   ("type", "outcome"), counts.commands)  # fmt: skip
    yield _gauge("commands_open", "Commands that wait for their outcome", len(state.commands))
    yield _distribution("turn_seconds", "Seconds of a turn: decide, append, publish, answer", counts.turn_seconds)
    yield _gauge("mailbox_depth", "Messages that wait for their turn", len(actor.mailbox))
    yield _gauge("mailbox_capacity", "Messages from outside that may wait", actor.mailbox.capacity)
    yield _gauge("subscribers", "Open streams of events", actor.broadcast.readers)
    yield _counter("generations_total", "Texts that have ended", ("finish_reason",), texts.counts.texts)
    yield _counter("tokens_total", "Tokens of texts: of their prompts, and generated", ("kind",), texts.counts.tokens)
    yield _labelled("generation_queue", "gauge", "Texts under way: without a token yet, and with", ("state",),
                    [(("waiting",), texts.waiting), (("running",), texts.running)])  # fmt: skip
    yield from _of_the_device(service)
    yield _single("download_bytes_total", "counter", "Bytes of SAEs that downloads came to",
                  actor.performer.downloaded_bytes)  # fmt: skip
    yield _counter("http_requests_total", "Requests answered", ("method", "route", "status"), requests.answered)
    began = [(("route", path), each) for path, each in sorted(requests.seconds.items())]
    yield MetricFamily(_name("http_request_seconds"), "histogram", "Seconds until an answer began",
                 [sample for label, each in began for sample in _samples(each, label)])  # fmt: skip


def _of_the_device(service: Context) -> Iterator[MetricFamily]:
    state = service.actor.state
    model = state.model.facts if state.model is not None else None
    statuses = Counter()
    for record in state.saes.values():
        statuses.add(record.status)
    yield _labelled("saes", "gauge", "SAEs on record", ("status",), statuses)
    yield _gauge("saes_attached", "SAEs that are attached", len(state.attached))
    yield _gauge("sae_memory_bytes", "Bytes of the attached SAEs, by their shapes",
                 sum(a.memory_bytes for a in state.attached))  # fmt: skip
    yield _labelled("device_memory_bytes", "gauge", "Bytes on the device, as measured", ("holds",),
                    [(("model",), 0 if model is None else model.memory_bytes),
                     (("saes",), sum(a.device_bytes for a in state.attachments))])  # fmt: skip


def of_the_process() -> Iterator[MetricFamily]:
    """The usual metrics of a process on Linux, and its tasks."""
    fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    yield MetricFamily("process_cpu_seconds_total", "counter", "User and system time",
                 [("", (), (int(fields[11]) + int(fields[12])) / _TICKS)])  # fmt: skip
    yield MetricFamily(
        "process_resident_memory_bytes", "gauge", "Resident memory", [("", (), int(fields[21]) * _PAGE_BYTES)]
    )
    yield MetricFamily(
        "process_open_fds", "gauge", "Open file descriptors", [("", (), len(os.listdir("/proc/self/fd")) - 1)]
    )
    yield MetricFamily("process_start_time_seconds", "gauge", "Start, in seconds since 1970", [("", (), _BORN)])
    yield _gauge("tasks", "Tasks of the event loop", len(asyncio.all_tasks()))


def _name(name: str) -> str:
    return f"sae_actor_{name}"


def _single(name: str, kind: str, about: str, value: float) -> MetricFamily:
    return MetricFamily(_name(name), kind, about, [("", (), value)])


def _gauge(name: str, about: str, value: float) -> MetricFamily:
    return _single(name, "gauge", about, value)


def _labelled(name: str, kind: str, about: str, names: Labels, values: Iterable[tuple[Labels, float]]) -> MetricFamily:
    return MetricFamily(
        _name(name), kind, about, [("", tuple(zip(names, labels, strict=True)), value) for labels, value in values]
    )


def _counter(name: str, about: str, names: Labels, counter: Counter) -> MetricFamily:
    return _labelled(name, "counter", about, names, counter)


def _distribution(name: str, about: str, distribution: Histogram) -> MetricFamily:
    return MetricFamily(_name(name), "histogram", about, _samples(distribution))


def _samples(distribution: Histogram, *labels: tuple[str, str]) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
    bounds = zip(distribution.bounds, distribution.cumulative, strict=True)
    found = [("_bucket", (*labels, ("le", f"{bound:g}")), float(count)) for bound, count in bounds]
    total = float(distribution.count)
    return [*found, ("_bucket", (*labels, ("le", "+Inf")), total), ("_sum", labels, distribution.sum),
            ("_count", labels, total)]  # fmt: skip


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
