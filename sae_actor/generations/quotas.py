"""Quotas: what each principal may have at once, and in a minute (fields of its line in the tokens file).

Texts. Of its texts `running` run at a time, which the engine sees to (`Engine.limit`), and `waiting` more wait for
those; the next is refused. Only `waiting` given: the engine's own limit is in the place of `running`. A request that
reads prompts or scores texts has one place of them, however many it reads: those take turns within `running`. A list of
prompts has all of its places, or none.

Tokens. From its admission on a text has reserved its prompt and all that it may make; each token that is made then
counts for a minute from that moment, the prompt with the first one, and what was not made is given back at the end.
So in no minute, wherever it begins, more than `tokens_per_minute` are run, however long or short the texts are; and
nobody waits for what nobody uses. A request for which there is no room is refused, and not kept waiting: it holds up
no smaller one, and Retry-After says when there is room if nothing else of that principal comes before it. Each
principal has its own minute, of which others can take nothing. A text to read or to score has reserved its tokens, and
they count from its end.

A request that could never have what it asks for is refused with 400. Tokens of one name share its quota, as do logins.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

from ..errors import BadRequestError, MailboxFullError, QuotaExceededError
from ..limits import LONGEST, Quota, Throughput

WINDOW = 60.0
"""Seconds for which a token counts."""
TICK = 1 / 32
"""Seconds whose tokens are kept as one number, and count as long as the last of them."""
Reason: TypeAlias = Literal["texts", "tokens", "queue"]
"""Why a principal was refused: its own quota, or the queue of all was full."""
REASONS: tuple[Reason, ...] = get_args(Reason)
TOKENS = ("prompt", "generated")
Kind: TypeAlias = Literal["made", "measuring"]
"""What has a place: a text that is made, or a request that reads or scores texts."""


class Need(NamedTuple):
    """The tokens of a text: those given, and the most that may be made."""

    prompt: int
    new: int = 0


@dataclass(slots=True)
class _Some:
    """Tokens that were run at nearly the same time."""

    first: float
    last: float
    count: int


class RecentTokens:
    """Those of the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._some: deque[_Some] = deque()
        self._total = 0

    def add(self, count: int) -> None:
        now = self._clock()
        self._forget(now)
        if self._some and now - self._some[-1].first < TICK:
            self._some[-1].last = now
            self._some[-1].count += count
        else:
            self._some.append(_Some(now, now, count))
        self._total += count

    @property
    def total(self) -> int:
        self._forget(self._clock())
        return self._total

    def __len__(self) -> int:
        """How many numbers are kept."""
        return len(self._some)

    def _forget(self, now: float) -> None:
        """What counts no longer: also where nobody asks for the total, as without a quota of tokens."""
        while self._some and self._some[0].last <= now - WINDOW:
            self._total -= self._some.popleft().count

    def seconds_until(self, fewer: int) -> int:
        """Seconds until so many count no longer; `LONGEST` if there are not so many."""
        for some in self._some:
            fewer -= some.count
            if fewer <= 0:
                return max(1, math.ceil(some.last + WINDOW - self._clock()))
        return LONGEST


class Ledger:
    """What one principal has now, and has had."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.places: Counter[Kind] = Counter()
        self.reserved = 0
        """Tokens that texts under way may still run."""
        self.recent = RecentTokens(clock)
        self.tokens: Counter[str] = Counter()
        """Run so far: `prompt` and `generated`."""
        self.refused: Counter[Reason] = Counter()
        self.pace = Throughput(clock=clock)

    @property
    def taken(self) -> int:
        return self.places.total()

    def run(self, kind: str, count: int) -> None:
        """Tokens that were reserved have been run."""
        if not count:
            return
        self.reserved -= count
        self.recent.add(count)
        self.tokens[kind] += count


@dataclass(slots=True)
class _Place:
    ledger: Ledger
    kind: Kind
    holders: int

    def leave(self, *, ran: bool) -> None:
        self.holders -= 1
        if self.holders == 0:
            self.ledger.places[self.kind] -= 1
            self.ledger.pace.ended(counts=ran)


@dataclass(slots=True)
class Hold:
    """What one text has of its principal's quota, from before its admission to its end."""

    need: Need
    is_timed: bool
    """Of a minute's tokens each counts from when it is made: `token` is to be called for it."""
    _place: _Place
    _over: Callable[[bool], object] | None
    """Told of the end; None after it."""
    _made: int = field(default=0)

    def token(self) -> None:
        """One was made."""
        ledger = self._place.ledger
        if not self._made:
            ledger.run("prompt", self.need.prompt)
        self._made += 1
        ledger.run("generated", 1)

    def end(self, *, ran: bool = False, made: int = 0) -> None:
        """It is over. ran: its prompt was run, or begun; made: how many tokens were made. Harmless when repeated."""
        if self._over is None:
            return
        over, self._over = self._over, None
        ledger = self._place.ledger
        if ran and not self._made:
            ledger.run("prompt", self.need.prompt)
        ledger.run("generated", made - self._made)
        ledger.reserved -= (0 if ran else self.need.prompt) + self.need.new - made
        self._place.leave(ran=ran)
        over(ran)


class Quotas:
    """The quotas in force, and what each principal has of its own."""

    def __init__(self, running: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """running: how many texts the engine runs at a time."""
        self._running = running
        self._clock = clock
        self._limits: Mapping[str, Quota] = {}
        self.ledgers: dict[str, Ledger] = {}
        """By principal."""
        self.held: Counter[Kind] = Counter()
        """Texts of everybody that hold something."""
        self._paces: dict[Kind, Throughput] = {"made": Throughput(clock=clock), "measuring": Throughput(clock=clock)}

    def use(self, limits: Mapping[str, Quota]) -> None:
        """Everybody's, from now on; what runs and waits goes on. Whoever is not among them is forgotten."""
        self._limits = dict(limits)
        for principal in tuple(self.ledgers):
            self._forget(principal)

    def _forget(self, principal: str) -> None:
        ledger = self.ledgers.get(principal)
        if self._limits and principal not in self._limits and ledger is not None and not ledger.taken:
            del self.ledgers[principal]

    def of(self, principal: str) -> Quota:
        return self._limits.get(principal, Quota())

    def ledger(self, principal: str) -> Ledger:
        return self.ledgers.setdefault(principal, Ledger(self._clock))

    def usual_new(self, principal: str, prompts: Sequence[int]) -> int | None:
        """The most tokens of an answer for which a request names no limit: an equal part of a minute for each text that
        may run, so that those can be reserved together. None: no quota of tokens. prompts: tokens of each text."""
        quota = self.of(principal)
        if quota.tokens_per_minute is None:
            return None
        part = quota.tokens_per_minute // max(quota.running or self._running or 1, len(prompts))
        left = (quota.tokens_per_minute - sum(prompts)) // len(prompts)
        return max(1, min(part, left))

    def check(self, principal: str, needs: Sequence[Need], kind: Kind = "made") -> None:
        """`BadRequestError` for what never fits."""
        quota, count = self.of(principal), 1 if kind == "measuring" else len(needs)
        most = self._most(quota)
        if most is not None and count > most:
            raise BadRequestError(
                f"{count} texts in a request; {principal} may have {most}: {self._at_once(quota)} that run at a time "
                f"and {quota.waiting} that wait",
                param="n",
                texts=count,
                quota=most,
            )
        tokens, minute = _tokens(needs), quota.tokens_per_minute
        if minute is not None and tokens > minute:
            raise BadRequestError(
                f"{tokens} tokens, with all that may be made; {principal} may have {minute} in a minute",
                param="max_tokens" if any(each.new for each in needs) else None,
                tokens=tokens,
                quota=minute,
            )

    def hold(self, principal: str, needs: Sequence[Need], kind: Kind = "made") -> list[Hold]:
        """What texts of one request need, all of it; each is to be ended. Raises as `check`, and `QuotaExceededError`
        for what does not fit now."""
        self.check(principal, needs, kind)
        quota, ledger = self.of(principal), self.ledger(principal)
        count, tokens = 1 if kind == "measuring" else len(needs), _tokens(needs)
        most = self._most(quota)
        if most is not None and ledger.taken + count > most:
            ledger.refused["texts"] += 1
            raise QuotaExceededError(
                f"{principal} has {ledger.taken} texts of {most} that may run and wait",
                retry_after=ledger.pace.seconds_for(ledger.taken + count - most),
            )
        if quota.tokens_per_minute is not None:
            used = ledger.recent.total + ledger.reserved
            if (short := used + tokens - quota.tokens_per_minute) > 0:
                ledger.refused["tokens"] += 1
                raise QuotaExceededError(
                    f"{principal} has used or reserved {used} tokens of {quota.tokens_per_minute} in a minute; this "
                    f"takes {tokens}",
                    # Where more has to end than what has been made: as if that were all made now.
                    retry_after=ledger.recent.seconds_until(short),
                )
        ledger.reserved += tokens
        ledger.places[kind] += count
        places = [_Place(ledger, kind, len(needs))] if kind == "measuring" else [_Place(ledger, kind, 1) for _ in needs]
        for _ in places:
            ledger.pace.began()
        self.held[kind] += len(needs)
        for _ in needs:
            self._paces[kind].began()
        over = partial(self._over, principal, kind)
        is_timed = quota.tokens_per_minute is not None
        return [Hold(each, is_timed, places[at % len(places)], over) for at, each in enumerate(needs)]

    def _over(self, principal: str, kind: Kind, ran: bool) -> None:
        self.held[kind] -= 1
        self._paces[kind].ended(counts=ran)
        self._forget(principal)

    def full(self, principal: str, detail: str, ahead: int, kind: Kind = "made") -> MailboxFullError:
        """The refusal of what waits with everybody's; ahead: how many have to end before it."""
        self.ledger(principal).refused["queue"] += 1
        return MailboxFullError(detail, retry_after=self._paces[kind].seconds_for(ahead))

    @property
    def taken(self) -> Counter[str]:
        """Places of texts that are made, by principal."""
        return Counter({name: taken for name, each in self.ledgers.items() if (taken := each.places["made"])})

    @contextlib.contextmanager
    def reading(self, principal: str, tokens: int) -> Iterator[None]:
        """Held while a request reads prompts of so many tokens. Raises as `hold`. They count from its end, unless the
        queue of all was full."""
        (hold,) = self.hold(principal, [Need(tokens)], "measuring")
        ran = True
        try:
            yield
        except MailboxFullError:
            ran = False
            raise
        finally:
            hold.end(ran=ran)

    def _at_once(self, quota: Quota) -> int | None:
        return quota.running if quota.running is not None else self._running

    def _most(self, quota: Quota) -> int | None:
        """Texts that may run and wait; None: any number."""
        running = self._at_once(quota)
        return None if quota.waiting is None or running is None else running + quota.waiting


def _tokens(needs: Sequence[Need]) -> int:
    return sum(each.prompt + each.new for each in needs)
