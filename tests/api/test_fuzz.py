"""Requests made up from the description, and answers held against it (Schemathesis, all checks that apply).

The service is a real one on a real socket, in a thread of its own, and asks for a token; before each operation it has
a model and an attached SAE, whose id half of the requests name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio.from_thread
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from sae_actor.api.operations import OPERATIONS, Operation

from .conforming import described
from .conftest import MODEL, REPOSITORY, Running, serving

ALL = [
    pytest.param(each, id=f"{each.method} {each.path}")
    for each in OPERATIONS
    if each.path != "/api/events" and not each.media
]
"""`/api/events` never ends, and bodies that are no JSON are not made up: these have tests of their own."""
REFUSED_BY_THE_STATE = ["412", "422"]
TOKEN = "secret-token"
REFUSED_BY_THE_MODEL = ["400"]
"""A prompt longer than its context, a token outside its vocabulary: no schema can tell."""


class World:
    """A service, and what Schemathesis makes of its description."""

    def __init__(self, service: Running, portal: anyio.from_thread.BlockingPortal) -> None:
        self._service = service
        self._portal = portal
        self.sae_id = portal.call(service.ready)
        self.headers = {"Authorization": f"Bearer {TOKEN}"}
        self.schema = schemathesis.openapi.from_url(f"{service.url}/schema", headers=self.headers)

        # Its own is the one way in; made-up ones would make every request a wrong one.
        self.schema.config.generation.update(with_security_parameters=False)

        @self.schema.auth()
        class Bearer:
            """Marks the token as one that is right: the check for ignored authentication goes on from there."""

            def get(self, case: Any, context: Any) -> str:
                return TOKEN

            def set(self, case: Any, data: str, context: Any) -> None:
                case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}

        self._count = 0

    def restore(self) -> None:
        """Bring back what requests have taken away."""
        self._portal.call(self._restore)

    async def _restore(self) -> None:
        for command in (
            {"type": "LoadModel", "model": MODEL},
            {"type": "Download", "repository_id": REPOSITORY, "path": "layer.1"},
            {"type": "Attach", "sae_id": self.sae_id, "replace": True},
        ):
            answer = await self._service.client.post("/api/commands", json=command, headers={"Prefer": "wait=10"})
            assert answer.status_code in (200, 409), answer.text

    def named(self, case: Any, mode: GenerationMode) -> None:
        """Every other request is about the SAE that is there, unless what is wrong with it could go with that."""
        self._count += 1
        if self._count % 2 and mode is GenerationMode.POSITIVE:
            for where in (case.path_parameters, case.body):
                if isinstance(where, dict) and "sae_id" in where:
                    where["sae_id"] = self.sae_id


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(tokens=(TOKEN,))) as service,
    ):
        yield World(service, portal)


def made_up(world: World, each: Operation, examples: int, *, derandomize: bool) -> int:
    """Send that many requests of each mode that the operation allows; how many were sent."""
    operation = world.schema[each.path][each.method]
    acceptance = operation.schema.config.checks.positive_data_acceptance
    acceptance.expected_statuses = [*type(acceptance)().expected_statuses, *REFUSED_BY_THE_STATE]
    if each.tag == "text" or each.path == "/api/generations/search":
        acceptance.expected_statuses += REFUSED_BY_THE_MODEL
    rejection = operation.schema.config.checks.negative_data_rejection
    rejection.expected_statuses = [*type(rejection)().expected_statuses, "412"]
    return sum(_ask(world, operation, mode, examples, derandomize=derandomize) for mode in _modes(each))


def _ask(world: World, operation: Any, mode: GenerationMode, examples: int, *, derandomize: bool) -> int:
    sent = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        nonlocal sent
        world.named(case, mode)
        if mode is GenerationMode.POSITIVE:
            possible(case.body)
        case.call_and_validate(timeout=10)
        sent += 1

    ask()
    return sent


def _modes(each: Operation) -> list[GenerationMode]:
    """Where nothing is taken but an id of any form, and a wish that may be ignored, no request can be wrong."""
    free = {"command_id", "generation_id", "model_id", "texts_id", "Prefer"}
    parameters = described()["paths"][each.path][each.method.lower()]["parameters"]
    wrong = each.body is not None or any(parameter["name"] not in free for parameter in parameters)
    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if wrong else [GenerationMode.POSITIVE]


def possible(body: Any) -> None:
    """Take out what JSON Schema has no words for: 1.0 is no whole number here, a range has a length, an edit is
    of a position that the text can have, that of an attachment names no other SAE, a layer is said once, only some
    hook points have something before them, and vectors are as long as each other, not 0, and each of one name."""
    parts = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    for part in parts:
        possible(part)
    if isinstance(body, dict):
        for key, value in body.items():
            if isinstance(value, float) and value.is_integer():
                body[key] = int(value)
        if isinstance(body.get("from"), int) and isinstance(body.get("to"), int):
            del body["to"]
        if "strength" in body:
            body.pop("sae_id", None)
            positions = body.get("positions")
            if isinstance(positions, dict):
                positions.update(
                    {key: [0] if key == "tokens" else 0 for key in ("tokens", "from") if positions.get(key)}
                )
        if "kind" in body:
            body.pop("before", None)
        if isinstance(body.get("rows"), list):
            body["rows"] = [[1, *row[1:2]] for row in body["rows"] if len(row) == len(body["rows"][0])]
            width = min(map(len, body["rows"]))
            body["rows"] = [row[:width] for row in body["rows"]]
            body.pop("names", None)
        if isinstance(body.get("layer"), int):
            body.pop("hook_point", None)
    elif isinstance(body, list):
        body[:] = [int(part) if isinstance(part, float) and part.is_integer() else part for part in body]


@pytest.mark.parametrize("each", ALL)
def test_requests_from_the_description(world: World, each: Operation) -> None:
    world.restore()
    assert made_up(world, each, 3, derandomize=True) >= 1


@pytest.mark.fuzz
@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", ALL)
def test_hundreds_of_requests_from_the_description(world: World, each: Operation) -> None:
    world.restore()
    made_up(world, each, 300, derandomize=False)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_streams_from_the_description(world: World, mode: GenerationMode) -> None:
    """Only the head of the answer is looked at; a parameter that is not known asks for nothing."""
    seen = set()

    @given(case=world.schema["/api/events"]["GET"].as_strategy(generation_mode=mode))
    @settings(max_examples=6, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    def ask(case: Any) -> None:
        request = case.as_transport_kwargs()
        with httpx.stream("GET", request["url"], params=request["params"], headers=world.headers) as answer:
            seen.add(answer.status_code)
            where = described()["paths"]["/api/events"]["get"]["responses"][str(answer.status_code)]["content"]
            assert answer.headers["content-type"].partition(";")[0] in where

    ask()
    # Which wrong parameters are drawn is the library's: one that is unknown is ignored.
    assert seen == {200} if mode is GenerationMode.POSITIVE else 400 in seen <= {200, 400}
