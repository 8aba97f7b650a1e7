"""The service: wiring, start and graceful shutdown.

Order of a start: port, log (lock, chain), state, actor, HTTP; the model and the SAEs come back while `/ready` says
503. Order of a stop: nothing new begins, generations end, the stop goes on record and reaches the streams of events,
which end, HTTP ends, the device is freed, the log is closed.

Signals arrive in `HttpServer` (`api.server.http_server`), which calls `_on_signal`. SIGTERM lets generations go on for
`[server] drain_seconds`, SIGINT does not; `InFlight.end` (`api.guard.shutdown`) then ends those that are left, and
answers the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn

from .. import __version__
from ..actor import Accepted, Actor, Performer
from ..api import Context, Sessions, create_app
from ..api.context import prompt_queue
from ..api.kept_answers import KeptAnswers
from ..api.server.http_server import HttpServer
from ..api.server.listener import AT_ONCE, room_for
from ..api.server.protocol import ConnectionLimits, protocol
from ..backups.making import ServiceBackups, sweep
from ..config import ConfigurationError, Deployment
from ..demo.model import NAME
from ..demo.sae import place_sae
from ..demo.seed import seed
from ..domain.commands import LoadModel
from ..domain.events import LogTruncated
from ..domain.messages import Start
from ..domain.structs import filled
from ..errors import NotReadyError, ReadOnlyError, SAEError, SAEInUseError
from ..eventlog import SqliteLog
from ..eventlog.index import INDEX, Finder, IndexDatabase, follow
from ..features import Features
from ..generations import Generations
from ..ports import Progress
from ..runs import RunFolder, Runs
from ..subscriptions import Broadcast, progress_frame
from ..telemetry import logs
from ..telemetry.traces import Tracing
from . import garbage
from .adapters import Adapters
from .capabilities import capabilities
from .lazy_engine import LazyEngine
from .reloading import reload
from .supervisor import Supervisor

logger = logging.getLogger("sae_actor")

EX_UNAVAILABLE, EX_SOFTWARE, EX_IOERR = 69, 70, 74
STOP_SECONDS = 4.0
"""How long the stop may take to be recorded, and how long open connections then have: after the generations' end."""
CLOSE_SECONDS = 1.0
"""How long the engine's thread may take to end; then the process exits without it."""


class Service:
    """Everything wired together, for one life of the process."""

    def __init__(
        self,
        deployment: Deployment,
        log: SqliteLog,
        adapters: Adapters,
        tracing: Tracing | None,
        reread: Callable[[], Deployment] | None = None,
    ) -> None:
        self.tracing = tracing
        self._reread = reread
        self._supervisor = Supervisor()
        self.deployment = deployment
        self.settings = settings = deployment.settings
        self.log = log
        self.demo_sae = None if deployment.demo_model is None else place_sae(deployment.demo_model).resolve()
        self.exit_code = 0
        self._ending: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        demo = [] if self.demo_sae is None else [self.demo_sae.parent]
        self.hub = adapters.hub(
            deployment.folder / "hub",
            import_roots=[*(Path(root).expanduser() for root in settings.hub.import_roots), *demo],
            quota_bytes=settings.hub.quota_bytes or None,
            download_hosts=settings.hub.download_hosts,
        )
        self.engine = LazyEngine(lambda: adapters.engine(settings), self.hub.fetch_model)
        self.broadcast = Broadcast(log)
        index = IndexDatabase(deployment.folder / INDEX, read_only=log.read_only)
        self.finder = Finder(log, index, self.broadcast.grown)
        self.broadcast.look_up = self.finder.skipping
        self.features = Features(
            deployment.folder, self.hub, lambda: self.actor.state, settings.data.upload_bytes, read_only=log.read_only
        )
        drain = settings.engine.drain_seconds
        performer = Performer(self.engine, self.hub, self._announce, drain, self.features.forget)
        self.actor = Actor(log, self.engine, performer, adapters.clock, self.broadcast)
        folder = RunFolder(deployment.folder / "runs", read_only=log.read_only)
        self.runs = Runs(folder, self.engine, lambda: self.actor.state, self._announce)
        performer.run, self.engine.profiled = self.runs.perform, self.runs.profiles.known
        self.runs.profiled, self.features.profile_rows = self.features.profiled, self.runs.all_rows
        self.generations = Generations(
            self.actor,
            self.engine,
            record_text=settings.audit.record_text,
            deadline_seconds=settings.engine.deadline_seconds,
            places=settings.engine.max_running + settings.engine.max_waiting,
            running=settings.engine.max_running,
            labels=self.features.labels,
            clock=adapters.clock.monotonic,
        )
        self.runs.use(self.generations, self.features.labels, settings.engine.max_running)
        self.context = Context(
            actor=self.actor,
            generations=self.generations,
            log=log,
            hub=self.hub,
            engine=self.engine,
            runs=self.runs,
            texts_roots=tuple(Path(root).expanduser() for root in settings.data.texts_roots),
            upload_bytes=settings.data.upload_bytes,
            features=self.features,
            finder=self.finder,
            seeding=self.demo_sae is not None,
            capabilities=lambda: capabilities(settings),
            backups=ServiceBackups(log, deployment.folder, lambda: self.actor.state, adapters.clock),
            model_name=settings.model.name,
            quota_bytes=settings.hub.quota_bytes or None,
            access=deployment.access,
            sessions=Sessions(settings.server.session_hours * 3600),
            hosts=deployment.hosts,
            cors_origins=settings.server.cors_origins,
            prompts=prompt_queue(settings.engine.max_running + settings.engine.max_waiting),
            kept=KeptAnswers(clock=adapters.clock.monotonic),
            max_readers=settings.server.max_readers,
            heartbeat=settings.server.heartbeat_seconds,
        )

    async def serve(self, listener: socket.socket, *, read_only: bool) -> int:
        await self.actor.replay()
        await self.features.start()
        if self.actor.state.branch_id is not None:
            self.broadcast.follow_branch(self.actor.state.branch_id)
        garbage.tune()
        self._server = server = HttpServer(self._uvicorn(), self._on_signal, self.settings.server.request_seconds)
        if read_only:
            self.actor.read_only = "the service was started with --read-only"
        load = None if read_only else await self._start()
        url = self.deployment.url(*listener.getsockname()[:2])
        tasks = [
            asyncio.create_task(self._after_start(url, load)),
            asyncio.create_task(self._end_on_failure()),
            asyncio.create_task(follow(self.log, self.finder.index, self.broadcast.grown)),
            asyncio.create_task(self._supervisor.attend(self.context.waiting_for)),
        ]
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in tasks:
                task.cancel()
            await self._close()
        return self.exit_code

    async def _start(self) -> Accepted | None:
        """Start the actor; the command that loads the model of the settings, if that was missing."""
        hub_saes = (record for record in self.actor.state.saes.values() if record.source == "hub")
        # Before any effect: remove the leftovers of killed processes, except files that a download can continue.
        await asyncio.to_thread(sweep, self.deployment.folder)
        await self.hub.sweep({r.sae_id: r.commit if r.sae is not None else None for r in hub_saes})
        if self.log.truncation is None:
            await asyncio.to_thread(self.runs.folder.sweep, tuple(self.actor.state.runs))
        else:
            lost = self.log.truncation
            await self.actor.acknowledge(
                LogTruncated(known_position=lost.position, known_hash=lost.hash, why="--accept-truncation")
            )
        try:
            found = await self.log.taken_over()
            open_runs = [run.run_id for run in self.actor.state.runs.values() if run.status == "open"]
            own = {
                "version": __version__,
                "log": found,
                "run_progress": await asyncio.to_thread(self.runs.folder.progress, open_runs),
            }
            accepted = await self.actor.start(
                filled(Start, self.settings.gpu, self.settings.engine, self.deployment, **own)
            )
            if found.origin is not None and self.actor.state.branch_id == found.branch_id:
                await self.log.settle()
            return accepted
        except SAEInUseError as error:
            raise ConfigurationError(error.detail) from None

    async def _after_start(self, url: str, load: Accepted | None) -> None:
        """Print the address, now that signals are handled. Then seed the demo, or wait for the command that loads the
        model of the settings, and report its failure."""
        print(f"sae-actor {__version__} on {url}", flush=True)
        try:
            if self.deployment.demo_model is not None and self.demo_sae is not None:
                settings, path = self.settings.model, str(self.deployment.demo_model / NAME)
                model = LoadModel(
                    model=path,
                    dtype=settings.dtype,
                    device=settings.device,
                    quantization=settings.quantization or None,
                )
                await seed(self.actor, self.log, model, url, self.demo_sae, token=bool(self.deployment.access))
            elif load is not None and self.deployment.model is not None:
                name = self.deployment.model.model
                outcome = await self.actor.outcome(load.command_id, 3600, load)
                if outcome.error is not None:
                    detail = outcome.error.detail
                    logs.say(detail if detail.startswith(name) else f"{name}: {detail}")
        except SAEError as error:
            logs.say(error.detail)
        finally:
            self.context.seeding = False

    def _announce(self, progress: Progress) -> None:
        """Announce progress; may be called from any thread."""
        with contextlib.suppress(RuntimeError):
            loop = self.actor.failure.get_loop()
            loop.call_soon_threadsafe(self.broadcast.announce, *progress_frame(progress))

    def _uvicorn(self) -> uvicorn.Config:
        server = self.settings.server
        certificate, key = self.deployment.tls or (None, None)
        most, spare = room_for(server.max_connections)
        return uvicorn.Config(
            create_app(self.context, *(() if self.tracing is None else self.tracing.middleware)),
            lifespan="off",
            log_level="error",
            # uvicorn's log lines go to our handlers.
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

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reloading = asyncio.create_task(self._reload(self._reloading), name="reload")
            return
        self._begin_stop(self.settings.server.drain_seconds if number == signal.SIGTERM else 0.0)

    async def _reload(self, before: asyncio.Task[None] | None) -> None:
        """Read the settings again and put on record what has changed; if they cannot be used, the old ones stay."""
        if before is not None:
            await asyncio.wait([before])
        if self._reread is None:
            return
        self._supervisor.reloading()
        try:
            found = await asyncio.to_thread(self._reread)
            event = reload(self.deployment, found, self.context, self._server.config.ssl)
        except (ConfigurationError, OSError) as error:
            logs.say(f"the settings in force stay: {error}")
            return
        finally:
            self._supervisor.tell("READY=1")
        for key in event.needs_restart:
            logs.say(f"warning: {key} has changed, and is in force after a restart")
        with contextlib.suppress(ReadOnlyError, NotReadyError):
            await self.actor.report(event)

    def _begin_stop(self, drain_seconds: float) -> None:
        if self._ending is None:
            self._supervisor.tell("STOPPING=1", "STATUS=draining")
            self._ending = asyncio.create_task(self._stop_serving(drain_seconds), name="shutdown")

    async def _stop_serving(self, drain_seconds: float) -> None:
        """The graceful shutdown, up to the end of HTTP. The port stays open meanwhile: reads and probes go on."""
        try:
            await self.actor.drain()
            idle = asyncio.ensure_future(self.generations.idle())
            ends = (idle, self.actor.failure)
            await asyncio.wait(ends, timeout=drain_seconds, return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            asyncio.get_running_loop().call_later(STOP_SECONDS, self._end_http)
            await self.context.in_flight.end(self.generations)
            await self.actor.stop()
        finally:
            self.broadcast.close()
            self._end_http()

    def _end_http(self) -> None:
        self._server.should_exit = True

    async def _end_on_failure(self) -> None:
        """Stop the service if the log fails or the device is lost; the exit code says so."""
        # Shielded: cancelling this watcher must not cancel what it watches.
        error = await asyncio.shield(self.actor.failure)
        logs.say(error.detail)
        self.exit_code = EX_SOFTWARE
        self._begin_stop(0.0)

    async def _close(self) -> None:
        if self._ending is not None:
            await self._ending
        self.broadcast.close()
        await self.generations.close()
        await self.actor.stop()
        if self.actor.started and self.actor.read_only is not None:
            self.exit_code = self.exit_code or EX_IOERR
        await self.hub.close()
        self.features.close()
        self.finder.index.close()
        if not await _within(self.engine.close, CLOSE_SECONDS):
            # Its thread is in a load that cannot be interrupted. Everything durable is closed: exit without it.
            await self.log.close()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.exit_code)


async def _within(action: Callable[[], Awaitable[None]], seconds: float) -> bool:
    try:
        await asyncio.wait_for(action(), seconds)
    except TimeoutError:
        return False
    return True
