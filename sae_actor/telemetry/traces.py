"""OpenTelemetry, where `[server] opentelemetry` asks for it: a span for each request that comes to a route.

Where spans go is said by the variables of its specification (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, …);
nothing of a query, a header or a body is in them.
"""

from __future__ import annotations

import threading
from typing import Any

from litestar.types import ASGIApp, Middleware, Receive, Scope, Send

from ..config import ConfigurationError

FLUSH_SECONDS = 1.0
"""For the last spans, when the service ends."""
_WITH_QUERY = ("http.url", "http.target", "url.full", "url.query")


class Tracing:
    """The middleware that makes spans, and where they go."""

    def __init__(self, exporter: Any = None) -> None:
        """`exporter`: in place of OTLP over HTTP. Raises `ConfigurationError` where the libraries are missing."""
        try:
            # An optional extra: whoever does not ask for spans does without.
            from litestar.plugins.opentelemetry import OpenTelemetryConfig  # noqa: PLC0415
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(
                f"server.opentelemetry: {error.name or 'a library'} is not installed: pip install 'sae-actor[otel]'"
            ) from error
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            # Neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES gives one.
            resource = resource.merge(Resource({"service.name": "sae-actor"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        config = OpenTelemetryConfig(
            tracer_provider=self._provider,
            scope_span_details_extractor=_by_method,
            server_request_hook_handler=_without_query,
            # One for each piece of a stream would be a flood.
            exclude_spans=["receive", "send"],
        )
        self.middleware: tuple[Middleware, ...] = (config.middleware, _by_route)

    def close(self) -> None:
        """Send what is left, but wait for no collector that is not there."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)


def _by_method(scope: Any) -> tuple[str, dict[str, Any]]:
    """Until the route is known; of what comes to none there are addresses without end."""
    return str(scope.get("method", "")), {}


def _by_route(app: ASGIApp) -> ASGIApp:
    """Around each route: its span is called after it."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415 - as above

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        span, route = get_current_span(), str(scope.get("path_template", ""))
        span.update_name(f"{scope.get('method')} {route}")
        span.set_attribute("http.route", route)
        await app(scope, receive, send)

    return named


def _without_query(span: Any, scope: dict[str, Any]) -> None:
    """A token in an address is refused; it is not to be found in a span either."""
    for name in _WITH_QUERY:
        value = (span.attributes or {}).get(name)
        if isinstance(value, str):
            span.set_attribute(name, "" if name == "url.query" else value.partition("?")[0])
    caller = scope.get("caller")
    if caller is not None:
        span.set_attribute("sae_actor.principal", caller.name)
