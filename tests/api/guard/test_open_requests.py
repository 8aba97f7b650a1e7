"""Requests under way when the right that they came with ends: a login as a token."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sae_actor.api.guard.open_requests import Right
from sae_actor.api.guard.sessions import Sessions
from sae_actor.config.access import Grant

pytestmark = pytest.mark.anyio

BOB = Grant("bob", "operator", b"digest")


class Request:
    """One that never ends by itself; `begins`: its answer has begun."""

    def __init__(self, sessions: Sessions, *, begins: bool) -> None:
        self.sessions = sessions
        self.begins = begins
        self.waits = asyncio.Event()
        self.sent: list[Any] = []

    async def app(self, _scope: Any, _receive: Any, send: Any) -> None:
        if self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        self.waits.set()
        await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def receive(self) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def run(self, right: Right, seconds: float | None = None) -> None:
        scope = {"type": "http", "method": "GET", "path": "/api/state", "headers": [], "query_string": b""}
        run = self.sessions.open_requests.run
        await run(right, self.app, scope, self.receive, self.send, seconds=seconds)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("by", ["logout", "token"])
async def test_what_has_not_begun_is_refused_and_a_stream_ends_well(by: str, begins: bool) -> None:
    sessions = Sessions()
    request, session_id = Request(sessions, begins=begins), sessions.begin(BOB)
    running = asyncio.create_task(request.run(BOB if by == "token" else sessions.lasting(session_id)[0]))
    await request.waits.wait()
    if by == "token":
        sessions.withdraw([BOB])
    else:
        sessions.end(session_id)
    await running
    if begins:
        assert request.sent[1:] == [{"type": "http.response.body", "body": b"", "more_body": False}]
    else:
        assert request.sent[0]["status"] == 401
        what = "token" if by == "token" else "login"
        assert json.loads(request.sent[1]["body"])["detail"] == f"the {what} is not valid any more"


async def test_a_login_that_runs_out_ends_its_requests() -> None:
    sessions = Sessions(0.0)
    key, seconds = sessions.lasting(sessions.begin(BOB))
    request = Request(sessions, begins=True)
    await request.run(key, seconds)
    assert request.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_whoever_ends_its_own_login_has_its_answer() -> None:
    sessions = Sessions()
    session_id = sessions.begin(BOB)
    request = Request(sessions, begins=False)

    async def logout(_scope: Any, _receive: Any, send: Any) -> None:
        sessions.end(session_id)
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 204, "headers": []})

    request.app = logout  # type: ignore[method-assign]
    await request.run(sessions.lasting(session_id)[0])
    assert [message["status"] for message in request.sent] == [204]
