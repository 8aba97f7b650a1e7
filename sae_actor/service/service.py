"""The service: wiring, start and graceful shutdown.

Order of a start: port, log (lock, chain), state, actor, HTTP; the model and the SAEs come back while `/ready` says
503. Order of a stop: streams and generations end, HTTP ends, the stop goes on record, the device is freed, the log
is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn

from .. import __version__
from ..actor import Actor, Performer
from ..api import Context, InFlight, Sessions, create_app
from ..api.context import prompt_queue
from ..api.kept_answers import KeptAnswers
from ..api.server.listener import AT_ONCE, HttpServer, room_for
from ..api.server.protocol import ConnectionLimits, protocol
from ..config import Deployment
from ..demo.model import NAME
from ..demo.sae import place_sae
from ..demo.seed import seed
from ..domain.commands import LoadModel
from ..domain.events import LogTruncated
from ..domain.messages import Start
from ..errors import SAEError
from ..eventlog import SqliteLog
from ..generations import Generations
from ..subscriptions import Broadcast
from ..telemetry import logs
from ..telemetry.traces import Tracing
from .adapters import Adapters
from .capabilities import capabilities
from .lazy_engine import LazyEngine
from .requested_model import asked_for, check_model, same

logger = logging.getLogger("sae_actor")

EX_UNAVAILABLE, EX_SOFTWARE, EX_CONFIG = 69, 70, 78
STOP_SECONDS = 4.0
"""For open requests to end after the first signal."""
CLOSE_SECONDS = 1.0
"""For the engine's thread to end; then the process leaves without it."""


class Service:
    """Everything wired together, for one life of the process."""

    def __init__(self, deployment: Deployment, log: SqliteLog, adapters: Adapters, tracing: Tracing | None) -> None:
        self.tracing = tracing
        self.deployment = deployment
        self.settings = settings = deployment.settings
        self.log = log
        self.demo_model = deployment.demo_model
        self.demo_sae = None if self.demo_model is None else place_sae(self.demo_model).resolve()
        self.exit_code = 0
        self.clock = adapters.clock
        self.unanswered = InFlight()
        self.preparing: str | None = None
        """What the settings require and is not requested or not there yet."""
        roots = [Path(root).expanduser() for root in settings.hub.import_roots]
        if self.demo_sae is not None:
            roots.append(self.demo_sae.parent)
        self.hub = adapters.hub(
            deployment.folder / "hub",
            import_roots=roots,
            quota_bytes=settings.hub.quota_bytes or None,
            download_hosts=settings.hub.download_hosts,
        )
        self.engine = LazyEngine(lambda: adapters.engine(settings), self.hub.fetch_model)
        self.broadcast = Broadcast(log)
        performer = Performer(self.engine, self.hub, self._announce, settings.engine.drain_seconds)
        self.actor = Actor(log, self.engine, performer, adapters.clock, self.broadcast)
        self.texts = Generations(
            self.actor,
            self.engine,
            record_text=settings.audit.record_text,
            deadline_seconds=settings.engine.deadline_seconds,
            places=settings.engine.max_running + settings.engine.max_waiting,
        )

    async def serve(self, listener: socket.socket, *, read_only: bool) -> int:
        await self.actor.replay()
        check_model(self.settings, self.actor.state)
        _settle_collector()
        server = HttpServer(self._uvicorn(), self._on_signal, self.settings.server.request_seconds)
        if read_only:
            self.actor.read_only = "the service was started with --read-only"
        else:
            if self.demo_sae is not None or self.settings.model.id:
                self.preparing = "what the settings require is being loaded"
            await self._start()
        url = self.deployment.url(*listener.getsockname()[:2])
        wishes = asyncio.create_task(self._wishes(url, read_only=read_only))
        ended = asyncio.create_task(self._end_on_failure(server))
        self._server = server
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in (wishes, ended):
                task.cancel()
            await self._close()
        return self.exit_code

    async def _start(self) -> None:
        settings = self.settings
        hub_saes = (record for record in self.actor.state.saes.values() if record.source == "hub")
        # Before any effect: remove leftovers of killed processes, except what a download can continue.
        await self.hub.sweep({r.sae_id: r.commit if r.sae is not None else None for r in hub_saes})
        if self.log.truncation is not None:
            known = self.log.truncation
            await self.actor.acknowledge(
                LogTruncated(known_position=known.position, known_hash=known.hash, why="--accept-truncation")
            )
        await self.actor.start(
            Start(
                version=__version__,
                max_attachments=settings.gpu.max_attachments,
                drain_seconds=settings.engine.drain_seconds,
            )
        )

    async def _wishes(self, url: str, *, read_only: bool) -> None:
        """What the settings require beyond the log: a model, or the demo's first contents."""
        print(f"sae-actor {__version__} on {url}", flush=True)
        if read_only:
            return
        try:
            if self.demo_model is not None and self.demo_sae is not None:
                await self._seed(url, self.demo_model, self.demo_sae)
            elif self.settings.model.id:
                await self._load_model()
        except SAEError as error:
            logs.say(error.detail)
        finally:
            self.preparing = None

    async def _seed(self, url: str, folder: Path, sae: Path) -> None:
        asked = self.settings.model
        model = LoadModel(model=str(folder / NAME), dtype=asked.dtype, device=asked.device)
        await seed(self.actor, self.log, model, url, sae, token=bool(self.deployment.access))

    async def _load_model(self) -> None:
        wanted, model = asked_for(self.settings), self.actor.state.model
        if wanted is None or (model is not None and same(model, wanted) and model.status != "error"):
            return
        accepted = await self.actor.submit(wanted, principal="configuration")
        outcome = await self.actor.outcome(accepted.command_id, wait=3600)
        if outcome.error is not None:
            detail = outcome.error.detail
            logs.say(detail if detail.startswith(wanted.model) else f"{wanted.model}: {detail}")

    def _announce(self, event_type: str, data: dict[str, object]) -> None:
        """Progress from whatever thread has some."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.broadcast.announce, event_type, data)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.actor.failure.get_loop()

    def _uvicorn(self) -> uvicorn.Config:
        server, engine = self.settings.server, self.settings.engine
        certificate, key = self.deployment.tls or (None, None)
        most, spare = room_for(server.max_connections)
        app = create_app(
            Context(
                actor=self.actor,
                texts=self.texts,
                log=self.log,
                hub=self.hub,
                engine=self.engine,
                preparing=lambda: self.preparing,
                capabilities=lambda: capabilities(self.settings),
                quota_bytes=self.settings.hub.quota_bytes or None,
                access=self.deployment.access,
                sessions=Sessions(server.session_hours * 3600),
                hosts=self.deployment.hosts,
                cors_origins=server.cors_origins,
                prompts=prompt_queue(engine.max_running + engine.max_waiting),
                kept=KeptAnswers(clock=self.clock.monotonic),
                unanswered=self.unanswered,
                max_readers=server.max_readers,
                heartbeat=server.heartbeat_seconds,
            ),
            *(() if self.tracing is None else self.tracing.middleware),
        )
        return uvicorn.Config(
            app,
            lifespan="off",
            log_level="error",
            # Its log lines go where ours do.
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_SECONDS),
            backlog=AT_ONCE,
            timeout_keep_alive=math.ceil(server.request_seconds),
            ws="none",
            proxy_headers=bool(server.trusted_proxies),
            forwarded_allow_ips=list(server.trusted_proxies),
            http=protocol(ConnectionLimits(most, spare, server.request_seconds, server.stalled_seconds)),
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )

    def _on_signal(self) -> None:
        """End what would keep connections open: streams, generations and waiting requests, with the reason."""
        self.broadcast.close()
        self.actor.let_go()
        self._ending = asyncio.ensure_future(self.unanswered.end(self.texts))

    async def _end_on_failure(self, server: HttpServer) -> None:
        """The log failed or the device is lost: a process that cannot keep its promises ends."""
        # Shielded: cancelling this watcher must not cancel what it watches.
        error = await asyncio.shield(self.actor.failure)
        logs.say(error.detail)
        self.exit_code = EX_SOFTWARE
        self._on_signal()
        server.should_exit = True

    async def _close(self) -> None:
        self.broadcast.close()
        await self.texts.close()
        await self.actor.stop()
        await self.hub.close()
        if not await _within(self.engine.close, CLOSE_SECONDS):
            # Its thread sits in a load that cannot be interrupted; everything durable is closed, so leave without it.
            await self.log.close()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.exit_code)


def _settle_collector() -> None:
    """Collect cyclic garbage rarely, and not among long-lived objects.

    Each event makes thousands of short-lived objects where there are a thousand readers: with the thresholds that
    Python has, collections took an eighth of the time, and the longest of them 0.1 s, in which commands waited.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _within(action: Callable[[], Awaitable[None]], seconds: float) -> bool:
    try:
        await asyncio.wait_for(action(), seconds)
    except TimeoutError:
        return False
    return True
