"""Quotas: what a principal may have at once and in a minute, by a clock that the test turns."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.errors import BadRequestError, MailboxFullError, QuotaExceededError
from sae_actor.generations.quotas import TICK, WINDOW, Hold, Need, Quotas
from sae_actor.limits import LONGEST, Quota


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def quotas(clock: Clock | None = None, /, **limits: Quota) -> Quotas:
    """Of an engine that runs eight texts at a time."""
    made = Quotas(8, clock=clock or Clock())
    made.use(limits)
    return made


def refused(found: Quotas, *needs: Need, principal: str = "pia") -> tuple[str, int]:
    with pytest.raises(QuotaExceededError) as error:
        found.hold(principal, needs)
    return error.value.detail, error.value.fields["retry_after"]


def test_texts_run_and_wait_and_the_next_is_refused() -> None:
    found = quotas(pia=Quota(running=2, waiting=1))
    one, two = found.hold("pia", [Need(1), Need(1)])
    (three,) = found.hold("pia", [Need(1)])
    assert refused(found, Need(1))[0] == "pia has 3 texts of 3 that may run and wait"
    found.hold("ulf", [Need(1)] * 100)
    two.end(ran=True)
    (four,) = found.hold("pia", [Need(1)])
    with found.reading("ulf", 5):
        assert found.ledger("ulf").taken == 101
    assert found.ledger("ulf").taken == 100
    for each in (one, three, four):
        each.end()
    assert found.ledger("pia").taken == found.ledger("pia").reserved == 0
    assert found.ledger("pia").refused == {"texts": 1}


@pytest.mark.parametrize(
    ("quota", "most"),
    [
        (Quota(running=2, waiting=3), 5),
        (Quota(running=2, waiting=0), 2),
        (Quota(waiting=3), 11),
    ],
)
def test_a_list_has_all_of_its_places_or_never_fits(quota: Quota, most: int) -> None:
    found = quotas(pia=quota)
    for each in found.hold("pia", [Need(1)] * most):
        each.end()
    with pytest.raises(BadRequestError) as error:
        found.hold("pia", [Need(1)] * (most + 1))
    assert (error.value.fields["texts"], error.value.fields["quota"]) == (most + 1, most)
    assert f"{most + 1} texts in a request; pia may have {most}:" in error.value.detail
    (one,) = found.hold("pia", [Need(1)])
    with pytest.raises(QuotaExceededError):
        found.hold("pia", [Need(1)] * most)
    assert found.ledger("pia").taken == 1, "none of them"
    one.end()


def test_without_a_number_of_waiting_texts_any_number_waits() -> None:
    found = quotas(pia=Quota(running=1))
    assert len(found.hold("pia", [Need(10**6)] * 1000)) == 1000


def test_a_request_that_scores_has_one_place() -> None:
    found = quotas(pia=Quota(running=1, waiting=0))
    holds = found.hold("pia", [Need(1)] * 50, "measuring")
    assert (found.ledger("pia").places, found.held["measuring"]) == ({"measuring": 1}, 50)
    for each in holds[:-1]:
        each.end(ran=True)
    assert refused(found, Need(1))[0] == "pia has 1 texts of 1 that may run and wait"
    holds[-1].end(ran=True)
    assert found.hold("pia", [Need(1)])


def test_what_may_be_made_is_reserved_and_the_rest_given_back() -> None:
    clock = Clock()
    found = quotas(clock, pia=Quota(tokens_per_minute=100))
    ledger = found.ledger("pia")
    (text,) = found.hold("pia", [Need(10, 50)])
    assert (ledger.reserved, ledger.recent.total, ledger.tokens) == (60, 0, {})
    for _ in range(5):
        text.token()
    assert (ledger.reserved, ledger.recent.total) == (45, 15)
    assert ledger.tokens == {"prompt": 10, "generated": 5}
    assert refused(found, Need(1, 40)) == (
        "pia has used or reserved 60 tokens of 100 in a minute; this takes 41", 60
    )  # fmt: skip
    text.end(ran=True, made=7)
    assert (ledger.reserved, ledger.recent.total, ledger.tokens["generated"]) == (0, 17, 7), "none is lost"
    (never,) = found.hold("pia", [Need(5, 78)])
    never.end()
    (only,) = found.hold("pia", [Need(5, 78)])
    only.end(ran=True)
    assert (ledger.reserved, ledger.recent.total) == (0, 22), "its prompt was run, and nothing made"
    clock.now += WINDOW + TICK
    assert ledger.recent.total == 0
    assert ledger.refused == {"tokens": 1}


def test_it_may_be_asked_again_when_it_says() -> None:
    clock = Clock()
    found = quotas(clock, pia=Quota(tokens_per_minute=100))
    for tokens in (40, 30, 30):
        with found.reading("pia", tokens):
            pass
        clock.now += 7.0
    assert refused(found, Need(10, 30))[1] == 39, "the first 40 were run 21 seconds ago"
    assert refused(found, Need(10, 31))[1] == 46
    assert refused(found, Need(100))[1] == 53
    clock.now += 38.0
    assert refused(found, Need(10, 30))[1] == 1
    clock.now += 1.0
    assert found.hold("pia", [Need(10, 30)])
    assert refused(found, Need(100))[1] == LONGEST, "what is reserved has to end before"


def test_more_than_a_minute_holds_never_fits() -> None:
    found = quotas(pia=Quota(tokens_per_minute=100))
    with pytest.raises(BadRequestError) as error:
        found.hold("pia", [Need(10, 41), Need(10, 40)])
    assert error.value.detail == "101 tokens, with all that may be made; pia may have 100 in a minute"
    assert error.value.fields == {"param": "max_tokens", "tokens": 101, "quota": 100}
    with pytest.raises(BadRequestError), found.reading("pia", 101):
        pass


def test_an_answer_without_a_limit_gets_an_equal_part() -> None:
    found = quotas(pia=Quota(running=4, tokens_per_minute=6000), ulf=Quota(tokens_per_minute=800), uma=Quota(running=1))
    assert found.usual_new("pia", [100]) == 1500
    assert found.usual_new("pia", [100] * 8) == 650, "of eight, and their prompts"
    assert found.usual_new("pia", [5000]) == 1000
    assert found.usual_new("pia", [6000]) == 1
    assert found.usual_new("ulf", [100]) == 100, "of the eight that the engine runs"
    assert found.usual_new("uma", [100]) is found.usual_new("vera", [100]) is None


def test_other_limits_hold_at_once() -> None:
    found = quotas(pia=Quota(running=1, waiting=1), ulf=Quota())
    one, two = found.hold("pia", [Need(1), Need(1)])
    found.hold("ulf", [Need(1)])
    found.use({"pia": Quota(running=1, waiting=2)})
    (three,) = found.hold("pia", [Need(1)])
    found.use({"pia": Quota(running=1, waiting=0)})
    one.end()
    two.end()
    refused(found, Need(1))
    three.end()
    assert found.hold("pia", [Need(1)])
    assert set(found.ledgers) == {"pia", "ulf"}, "a text of it is still there"


def test_whoever_holds_no_token_any_more_is_forgotten() -> None:
    found = quotas(pia=Quota(), ulf=Quota())
    (one,), (two,) = found.hold("pia", [Need(1)]), found.hold("ulf", [Need(1)])
    one.end()
    found.use({"uma": Quota()})
    assert set(found.ledgers) == {"ulf"}
    two.end()
    assert not found.ledgers


def test_the_last_minute_alone_is_kept_without_a_quota_too() -> None:
    clock = Clock()
    found = quotas(clock, pia=Quota())
    for _ in range(1000):
        (one,) = found.hold("pia", [Need(1, 1)])
        one.end(ran=True, made=1)
        clock.now += 1.0
    ledger = found.ledger("pia")
    assert len(ledger.recent) == WINDOW
    assert ledger.recent.total == 2 * (WINDOW - 1), "those of the 59 last seconds"
    assert ledger.tokens == {"prompt": 1000, "generated": 1000}


def test_what_a_full_queue_refuses_is_not_counted() -> None:
    found = quotas(pia=Quota(tokens_per_minute=100))
    with pytest.raises(MailboxFullError), found.reading("pia", 100):
        raise MailboxFullError("too many generations are waiting")
    assert (found.ledger("pia").reserved, found.ledger("pia").recent.total, found.ledger("pia").tokens) == (0, 0, {})
    with found.reading("pia", 100):
        pass
    assert found.ledger("pia").recent.total == 100
    assert refused(found, Need(1))[1] == 60


class Load:
    """Texts of one principal, as a test lets them begin, go on and end."""

    def __init__(self, found: Quotas, principal: str) -> None:
        self.found, self.principal = found, principal
        self.texts: list[tuple[Hold, int, bool]] = []
        """Each with the tokens that it may still make, and whether it has begun."""
        self.run: deque[tuple[float, int]] = deque()
        """When tokens were run, and how many."""

    def ask(self, now: float, prompt: int, new: int, count: int) -> None:
        quota = self.found.of(self.principal)
        need, minute = [Need(prompt, new)] * count, quota.tokens_per_minute or 0
        if (most := (quota.running or 8) + (quota.waiting or 0)) < count or count * (prompt + new) > minute:
            with pytest.raises(BadRequestError):
                self.found.hold(self.principal, need)
            return
        recent = sum(tokens for at, tokens in self.run if at > now - WINDOW - TICK)
        left = sum(new + (0 if begun else hold.need.prompt) for hold, new, begun in self.texts)
        fits = len(self.texts) + count <= most and recent + left + count * (prompt + new) <= minute
        try:
            held = self.found.hold(self.principal, need)
        except QuotaExceededError as error:
            seconds = error.fields["retry_after"]
        else:
            self.texts += [(hold, new, False) for hold in held]
            return
        assert not fits, "there was room"
        assert 1 <= seconds <= LONGEST

    def make(self, now: float, which: int) -> None:
        if not self.texts:
            return
        hold, left, begun = self.texts[which % len(self.texts)]
        if left:
            hold.token()
            self.run.append((now, 1 if begun else 1 + hold.need.prompt))
            self.texts[which % len(self.texts)] = (hold, left - 1, True)

    def end(self, which: int) -> None:
        if self.texts:
            hold, left, begun = self.texts.pop(which % len(self.texts))
            hold.end(ran=begun, made=hold.need.new - left)

    def within(self) -> None:
        quota = self.found.of(self.principal)
        assert len(self.texts) <= (quota.running or 8) + (quota.waiting or 0)
        for first, _ in self.run:
            within = sum(tokens for at, tokens in self.run if first <= at < first + WINDOW)
            assert within <= (quota.tokens_per_minute or 0)


WHO = [f"principal{n}" for n in range(50)]
ACTS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 20), st.integers(0, 20), st.integers(1, 4)),
    st.tuples(st.just("make"), st.integers(0, 9), st.just(0), st.just(0)),
    st.tuples(st.just("end"), st.integers(0, 9), st.just(0), st.just(0)),
)
LIMITS = st.builds(Quota, running=st.integers(1, 3), waiting=st.integers(0, 3), tokens_per_minute=st.integers(1, 80))


@given(
    st.lists(LIMITS, min_size=50, max_size=50),
    st.lists(st.tuples(st.sampled_from(range(50)) | st.just(0), ACTS, st.floats(0, 20)), max_size=150),
)
def test_no_minute_has_more_than_it_may_and_what_fits_is_taken(
    limits: list[Quota], acts: list[tuple[int, tuple[str, int, int, int], float]]
) -> None:
    """Fifty principals with random loads; none takes another's."""
    clock = Clock()
    found = quotas(clock, **dict(zip(WHO, limits, strict=True)))
    loads = [Load(found, principal) for principal in WHO]
    for who, (act, a, b, count), seconds in acts:
        load = loads[who]
        if act == "ask":
            load.ask(clock.now, a, b, count)
        elif act == "make":
            load.make(clock.now, a)
        else:
            load.end(a)
        clock.now += seconds
    for load in loads:
        load.within()
        while load.texts:
            load.end(0)
        assert found.ledger(load.principal).reserved == found.ledger(load.principal).taken == 0
    assert found.held == {"made": 0} or not found.held
    clock.now += WINDOW + TICK
    for load in loads:
        quota = found.of(load.principal)
        (hold,) = found.hold(load.principal, [Need(quota.tokens_per_minute or 0)])
        hold.end()
