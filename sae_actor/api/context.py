"""What every route may use: the actor, the generations, the ports it calls directly, the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..actor import Actor
from ..config.access import Access, Grant
from ..domain.views.capabilities import Capabilities
from ..domain.views.resources import waiting_for
from ..errors import ForbiddenError, MailboxFullError, ReadOnlyError
from ..eventlog.index import Finder
from ..features import Features
from ..features.last_steered import LastSteered
from ..generations import Generations
from ..limits import BoundedSemaphore
from ..ports import Backups, Engine, EventLog, Hub
from ..runs import Runs
from .guard.access_log import AccessLog
from .guard.attempts import Attempts
from .guard.policy import Policy
from .guard.shutdown import InFlight
from .kept_answers import KeptAnswers
from .log_pages import StateCache
from .types import AnyRequest

WALKS = 4
"""Answers that read much of the log at the same time: each holds what it has read so far."""
WALKS_WAITING = 32
"""Further ones, until it is their turn."""
LOOKS_WAITING = 32
"""Looks at features that wait for the one before them."""


def prompt_queue(waiting: int) -> BoundedSemaphore:
    """One at a time, as the tokenizer takes them; as many may wait as generations may run and wait."""
    return BoundedSemaphore(1, waiting, full="too many prompts are waiting", error=MailboxFullError)


@dataclass(slots=True, kw_only=True)
class Context(Policy):
    actor: Actor
    generations: Generations
    log: EventLog
    hub: Hub
    engine: Engine
    runs: Runs
    features: Features
    finder: Finder
    """Looks things up in the log."""
    capabilities: Callable[[], Capabilities]
    """What `/api/capabilities` says; from the code itself, without loading a model."""
    backups: Backups | None = None
    """None: the log has no files."""
    max_readers: int = 2048
    """Streams of events at the same time."""
    heartbeat: float = 15.0
    """Seconds between two comments, and two checkpoints, of a stream of events."""
    model_name: str = ""
    """`[model] name`: what the loaded model is called on `/v1`; empty: the last part of its id."""
    seeding: bool = False
    """Whether the demo's first contents are still on their way."""
    texts_roots: tuple[Path, ...] = ()
    """Folders whose files of texts runs may read."""
    upload_bytes: int = 256 * 2**20
    """The largest upload of texts."""
    quota_bytes: int | None = None
    """Bytes on disk for all downloads together; None: no limit."""
    attempts: Attempts = field(default_factory=Attempts)
    """Logins that failed recently."""
    walks: BoundedSemaphore = field(
        default_factory=lambda: BoundedSemaphore(WALKS, WALKS_WAITING, full="too many requests are reading the log")
    )
    """Held while an answer is made of much of the log."""
    prompts: BoundedSemaphore = field(default_factory=lambda: prompt_queue(32 + 1024))
    """Held while a prompt becomes tokens."""
    looks: BoundedSemaphore = field(
        default_factory=lambda: BoundedSemaphore(
            1, LOOKS_WAITING, full="too many feature requests are waiting", error=MailboxFullError
        )
    )
    """Held while weights are read on the device, which competes with generation."""
    steered: LastSteered = field(default_factory=LastSteered)
    """Where features were last steered."""
    past: StateCache = field(default_factory=StateCache)
    """States requested recently."""
    kept: KeptAnswers = field(default_factory=KeptAnswers)
    """Answers under an idempotency key."""
    access_log: AccessLog = field(default_factory=AccessLog)
    in_flight: InFlight = field(default_factory=InFlight)

    def __post_init__(self) -> None:
        self.use(self.access)

    def use(self, access: Access) -> None:
        """Who holds a token from now on, and what each may have."""
        self.access = access
        quotas = access.quotas
        self.generations.quotas.use(quotas)
        self.engine.limit({name: each.running for name, each in quotas.items() if each.running is not None})

    def waiting_for(self) -> list[str]:
        """Why not everything that is required is in place; nothing is waited for where the log cannot be written."""
        if self.actor.read_only is not None:
            return []
        return waiting_for(self.actor.state) or ["the demo is being set up"] * self.seeding


def context(request: AnyRequest) -> Context:
    found: Context = request.app.state.context
    return found


def device(request: AnyRequest) -> Engine:
    """The engine, to generate or read with. Raises `ReadOnlyError` if the model exists in the log only. With a full
    disk it is still on the device, and can be read."""
    service = context(request)
    if not service.actor.started and service.actor.read_only is not None:
        raise ReadOnlyError(service.actor.read_only)
    return service.engine


class Intervening(Protocol):
    """What a request says of its intervention."""

    @property
    def preset(self) -> str | None: ...
    @property
    def baseline(self) -> bool | None: ...
    @property
    def steering(self) -> object: ...
    @property
    def interventions(self) -> object: ...


def grant_of(request: AnyRequest) -> Grant:
    """The caller, as the checks found it."""
    found: Grant = request.scope["caller"]  # type: ignore[typeddict-item]  # put there by `guard`
    return found


def user_of(request: AnyRequest) -> str | None:
    """The name of a caller with the role `user`, who sees its own generations only."""
    grant = grant_of(request)
    return grant.name if grant.role == "user" else None


def check_intervention(request: AnyRequest, own: Intervening, *, usual_is_none: bool = False) -> None:
    """`ForbiddenError` for a caller that may use some presets alone, and asks for another intervention.

    usual_is_none: a request that says nothing runs without an intervention, not under the server's.
    """
    grant = grant_of(request)
    if grant.presets is None:
        return
    bare = own.baseline is True or (usual_is_none and own.baseline is None)
    named = own.preset in grant.presets if own.preset is not None else bare
    if not named or own.steering is not None or own.interventions is not None:
        allowed = ", ".join(grant.presets)
        raise ForbiddenError(f"{grant.name} may generate under a preset of its own ({allowed}) or with sae.baseline")


def principal(request: AnyRequest) -> str:
    """The caller, as the checks found: the name of the grant, `local` if no token is required."""
    return grant_of(request).name
