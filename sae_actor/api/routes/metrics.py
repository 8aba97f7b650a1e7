"""`GET /metrics`: metrics in the Prometheus text format (0.0.4).

Counters and histograms belong to this life of the process; the rest is read from the state on request.
Label values are the service's own words (types, routes, statuses) and the names in the tokens file, so that their
number is bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping

from litestar import Response
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ... import __version__
from ...generations.quotas import REASONS, TOKENS
from ...telemetry.metrics import Histogram, Labels
from ..context import Context, context
from ..operations import operation
from ..types import Answer, AnyRequest

MEDIA_TYPE = "text/plain; version=0.0.4"
"""The framework adds the charset."""


@operation("GET", "/metrics", "Metrics in the Prometheus text format",
           answers=((200, "text/plain"),))  # fmt: skip
async def get_metrics(request: AnyRequest) -> Answer:
    # Not the global registry: that is of the process, which may run several services.
    metrics = generate_latest(ServiceCollector(context(request)))
    return Response(metrics, media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})


class ServiceCollector(Collector):
    """What one service, and the process that it runs in, has to say at this moment."""

    def __init__(self, service: Context) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield from _of_the_service(self._service)
        yield from ProcessCollector(registry=None).collect()
        yield _gauge("tasks", "Tasks of the event loop", len(asyncio.all_tasks()))


def _of_the_service(service: Context) -> Iterator[Metric]:
    actor, generations, requests = service.actor, service.generations, service.access_log
    state, counts = actor.state, actor.counts
    yield _gauges("build_info", "1, with the version of the package", ("version",), {(__version__,): 1})
    yield _gauge("log_position", "Position of the last event", state.position)
    yield _gauge("log_read_only", "1 once nothing can be written any more", actor.read_only is not None)
    yield _counters("events_total", "Events appended", ("type",), counts.events)
    yield _histograms("append_seconds", "Seconds until an append was durable", (), {(): counts.append_seconds})
    yield _counters("commands_total", "Commands by what became of them; accepted ones count again when they end",
                    ("type", "outcome"), counts.commands)  # fmt: skip
    yield _gauge("commands_open", "Commands that wait for their outcome", len(state.commands))
    yield _histograms("turn_seconds", "Seconds of a turn: decide, append, publish, answer", (),
                      {(): counts.turn_seconds})  # fmt: skip
    yield _gauge("mailbox_depth", "Messages that wait for their turn", len(actor.mailbox))
    yield _gauge("mailbox_capacity", "Messages from outside that may wait", actor.mailbox.capacity)
    yield _gauge("subscribers", "Open streams of events", actor.broadcast.readers)
    yield _counters("generations_total", "Generations that have ended", ("finish_reason",), generations.ended)
    yield _counters("tokens_total", "Tokens of prompts, and generated tokens", ("kind",), generations.tokens)
    yield _gauges("generation_queue", "Running generations: without a token yet, and with", ("state",),
                  {("waiting",): generations.waiting, ("running",): generations.running})  # fmt: skip
    yield from _of_principals(service)
    yield from _of_the_device(service)
    yield _counters("download_bytes_total", "Bytes of SAEs that downloads came to", (),
                    {(): actor.performer.downloaded_bytes})  # fmt: skip
    yield _counters("http_requests_total", "Requests answered", ("method", "route", "status"), requests.answered)
    yield _histograms("http_request_seconds", "Seconds until an answer began", ("route",),
                      {(route,): each for route, each in requests.seconds.items()})  # fmt: skip


def _of_principals(service: Context) -> Iterator[Metric]:
    """By principal: whoever has asked, and still holds a token where there are some."""
    generations, ledgers = service.generations, service.generations.quotas.ledgers
    texts = Counter[Labels]({(name, state): 0 for name in ledgers for state in ("running", "waiting")})
    texts.update(generations.states)
    texts.update({(name, "measuring"): each.places["measuring"] for name, each in ledgers.items()})
    yield _gauges("principal_texts", "Texts that are made, and requests that read or score texts",
                  ("principal", "state"), texts)  # fmt: skip
    tokens: dict[Labels, float] = {(name, kind): each.tokens[kind] for name, each in ledgers.items() for kind in TOKENS}
    yield _counters("principal_tokens_total", "Tokens that were run: of prompts, and generated",
                    ("principal", "kind"), tokens)  # fmt: skip
    refused: dict[Labels, float] = {(name, why): each.refused[why] for name, each in ledgers.items() for why in REASONS}
    yield _counters("principal_refused_total", "Requests refused: by a quota of texts or tokens, or a full queue",
                    ("principal", "reason"), refused)  # fmt: skip


def _of_the_device(service: Context) -> Iterator[Metric]:
    state = service.actor.state
    model = state.model.facts if state.model is not None else None
    statuses: Counter[Labels] = Counter((record.status,) for record in state.saes.values())
    yield _gauges("saes", "SAEs on record", ("status",), statuses)
    yield _gauge("saes_attached", "SAEs that are attached", len(state.attached))
    yield _gauge("sae_memory_bytes", "Bytes of the attached SAEs, by their shapes",
                 sum(a.memory_bytes for a in state.attached))  # fmt: skip
    yield _gauges("device_memory_bytes", "Bytes on the device, as measured", ("holds",),
                  {("model",): 0 if model is None else model.memory_bytes,
                   ("saes",): sum(a.device_bytes for a in state.attachments)})  # fmt: skip


def _gauge(name: str, about: str, value: float) -> Metric:
    return _gauges(name, about, (), {(): value})


def _gauges(name: str, about: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    return _filled(GaugeMetricFamily(f"sae_actor_{name}", about, labels=labels), values)


def _counters(name: str, about: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    return _filled(CounterMetricFamily(f"sae_actor_{name}", about, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[Labels, float]) -> Metric:
    for each, value in sorted(values.items()):
        family.add_metric(each, value)
    return family


def _histograms(name: str, about: str, labels: Labels, histograms: Mapping[Labels, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"sae_actor_{name}", about, labels=labels)
    for each in sorted(histograms):
        family.add_metric(each, histograms[each].buckets, histograms[each].sum)
    return family
