"""Logging in with a browser: what a cookie is good for, how long, and how often one may guess."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from sae_actor.api import Sessions
from sae_actor.api.guard.attempts import Attempts
from sae_actor.api.guard.checks import READING
from sae_actor.config.access import Grant, digest_of
from sae_actor.errors import TooManyAttemptsError

from ..conftest import Running, serving
from ..guard.test_guard import GRANTS, OPERATOR, ROUTES, VIEWER

pytestmark = pytest.mark.anyio


@pytest.fixture
async def secured() -> AsyncIterator[Running]:
    async with serving(grants=GRANTS, bearer=OPERATOR) as running:
        yield running


@contextlib.asynccontextmanager
async def browser(service: Running, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Keeps cookies and sends its Origin with everything but GET, as browsers do."""

    async def origin(request: httpx.Request) -> None:
        if request.method != "GET" and "origin" not in request.headers:
            request.headers["origin"] = service.url

    hooks = {"request": [origin]}
    async with httpx.AsyncClient(base_url=service.url, timeout=10, event_hooks=hooks) as client:
        if token is not None:
            answer = await client.post("/login", json={"token": token})
            assert answer.status_code == 200
        yield client


def cookies(client: httpx.AsyncClient) -> dict[str, str]:
    return {cookie.name: str(cookie.value) for cookie in client.cookies.jar}


async def test_a_login_sets_a_cookie_that_no_script_and_no_other_site_gets(secured: Running) -> None:
    async with browser(secured) as client:
        answer = await client.post("/login", json={"token": VIEWER})
        assert answer.json() == {"principal": "vera", "role": "viewer", "tokens": True}
        (line,) = answer.headers.get_list("set-cookie")
        value, *attributes = line.split("; ")
        assert set(attributes) == {"Path=/", f"Max-Age={12 * 3600}", "HttpOnly", "SameSite=Strict"}
        assert len(value.partition("=")[2]) >= 43
        assert VIEWER not in line
        assert digest_of(VIEWER.encode()).hex() not in line
        assert (await client.get("/api/saes")).status_code == 200
        assert (await client.get("/api/session")).json()["principal"] == "vera"


async def test_by_cookie_a_viewer_reads_and_an_operator_commands(secured: Running) -> None:
    async with browser(secured, VIEWER) as viewer, browser(secured, OPERATOR) as operator:
        command = {"type": "LoadModel", "model": "tiny"}
        assert (await viewer.post("/api/commands", json=command)).status_code == 403
        answer = await operator.post("/api/commands", json=command, headers={"Prefer": "wait=10"})
        assert answer.json()["status"] == "completed"
        assert {event["principal"] for event in (await viewer.get("/api/log?after=1")).json()["events"]} == {"olga"}


async def test_a_cookie_writes_for_the_page_itself_alone(secured: Running) -> None:
    """On every route that writes: without an Origin, and from another port of this host, it is no good."""
    async with browser(secured, OPERATOR) as client:
        kept = "; ".join(f"{name}={value}" for name, value in cookies(client).items())
    async with httpx.AsyncClient(base_url=secured.url, headers={"cookie": kept}) as bare:
        assert (await bare.get("/api/saes")).status_code == 200
        for each, path in ROUTES:
            if each.method in READING:
                continue
            for headers in ({}, {"origin": "http://127.0.0.1:1"}, {"origin": "null"}):
                answer = await bare.request(each.method, path, headers=headers)
                assert answer.status_code == 403, (each.method, path, headers)
        # A token beside the cookie says that it is no page that asks.
        answer = await bare.post("/api/saes/x/detach", headers={"authorization": f"Bearer {OPERATOR}"})
        assert answer.status_code == 404
    assert len(await secured.events()) == 1 + 1  # the refused detach


async def test_a_logout_ends_the_session_and_not_only_the_cookie(secured: Running) -> None:
    async with browser(secured, OPERATOR) as client:
        kept = cookies(client)
        answer = await client.post("/logout")
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert cookies(client) == {}
        assert (await client.get("/api/saes")).status_code == 401
        async with httpx.AsyncClient(base_url=secured.url, cookies=kept) as thief:
            assert (await thief.get("/api/saes")).status_code == 401
            assert (await thief.get("/api/session")).json()["role"] is None


async def test_the_stream_of_events_by_cookie(secured: Running) -> None:
    async with browser(secured, VIEWER) as client, client.stream("GET", "/api/events") as stream:
        async for line in stream.aiter_lines():
            if line == "event: ActorStarted":
                break
        else:
            pytest.fail("no event came")


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"token":""}', b'{"token":1}', b'{"token":"a","more":1}', b'{"token":"a","token":"b"}', b"[]",
     b'{"token":"%s"}' % (b"x" * 2000), b"token=a", b'{"token":null}'],
)  # fmt: skip
async def test_strange_logins(secured: Running, body: bytes) -> None:
    async with browser(secured) as client:
        answer = await client.post("/login", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "set-cookie" not in answer.headers


async def test_forms_are_no_logins(secured: Running) -> None:
    async with browser(secured) as client:
        answer = await client.post("/login", data={"token": OPERATOR})
        assert answer.status_code == 415


async def test_guessing_ends_soon(secured: Running) -> None:
    """The right token is not told apart then; who has one in the header is not affected."""
    async with browser(secured) as client:
        found = [(await client.post("/login", json={"token": f"guess {n}"})).status_code for n in range(12)]
        assert found == [401] * 10 + [429] * 2
        answer = await client.post("/login", json={"token": OPERATOR})
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attempts")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await secured.client.get("/api/saes")).status_code == 200


# — sessions and attempts by their own clock —


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def grant(name: str) -> Grant:
    return Grant(name, "viewer", digest_of(name.encode()))


def test_a_session_ends_by_itself() -> None:
    clock = Clock()
    sessions = Sessions(60, clock=clock)
    session_id = sessions.begin(grant("a"))
    clock.now += 59.9
    assert sessions.of(session_id) == grant("a")
    clock.now += 0.1
    assert sessions.of(session_id) is None
    sessions.begin(grant("a"))
    assert len(sessions) == 1


def test_sessions_are_bounded_for_each_name() -> None:
    sessions = Sessions(each=3)
    others = sessions.begin(grant("b"))
    own = [sessions.begin(grant("a")) for _ in range(100)]
    assert [sessions.of(each) is not None for each in own] == [False] * 97 + [True] * 3
    assert sessions.of(others) is not None
    assert len(sessions) == 4


def test_ids_are_all_different_and_kept_as_digests() -> None:
    sessions = Sessions(each=1000)
    ids = {sessions.begin(grant("a")) for _ in range(500)}
    assert len(ids) == 500
    assert not any(each.encode() in key for each in ids for key in sessions._open)


def attempts(clock: Clock) -> Attempts:
    return Attempts(each=2, seconds=60, clock=clock)


def addresses(count: int) -> Iterator[str]:
    return (f"2001:db8:{n >> 16:x}:{n & 0xFFFF:x}::1" for n in range(count))


def test_attempts_are_counted_for_each_address_and_forgotten() -> None:
    clock = Clock()
    counted = attempts(clock)
    for _ in range(2):
        counted.check("192.0.2.1")
        counted.failed("192.0.2.1")
    with pytest.raises(TooManyAttemptsError) as caught:
        counted.check("192.0.2.1")
    assert caught.value.fields == {"retry_after": 60}
    counted.check("192.0.2.2")
    clock.now += 60
    counted.check("192.0.2.1")
    assert not counted._failed


def test_one_network_is_one_address() -> None:
    counted = attempts(Clock())
    for n in range(2):
        counted.failed(f"2001:db8::{n + 1}")
    with pytest.raises(TooManyAttemptsError):
        counted.check("2001:db8::ffff")
    counted.check("2001:db8:0:1::1")


def test_addresses_of_ipv4_are_no_network_of_ipv6() -> None:
    counted = attempts(Clock())
    for _ in range(2):
        counted.failed("::ffff:192.0.2.1")
    for address in ("::ffff:192.0.2.1", "192.0.2.1"):
        with pytest.raises(TooManyAttemptsError):
            counted.check(address)
    counted.check("::ffff:192.0.2.2")
    counted.check("::1")


def test_all_addresses_together_are_bounded() -> None:
    counted = attempts(Clock())
    for address in addresses(100):
        counted.check(address)
        counted.failed(address)
    with pytest.raises(TooManyAttemptsError):
        counted.check("192.0.2.1")
    assert len(counted._failed) == 100
