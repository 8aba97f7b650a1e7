"""Row 30: `If-Match` with positions that are not the one."""

from __future__ import annotations

import pytest

from .conftest import Running

pytestmark = pytest.mark.anyio

CASES = {
    "stale": ('"1"', 412),
    "in the future": ('"9999"', 412),
    "2^53": (f'"{2**53}"', 412),
    "2^63": (f'"{2**63}"', 400),
    "negative": ('"-1"', 400),
    "without quotes": ("9999", 400),
    "empty": ("", 400),
    "of no position": ('"abc"', 412),
}


async def test_row_30_positions_that_are_not_the_one(service: Running) -> None:
    await service.ready(attach=False)
    before = await service.events()
    for name, (header, status) in CASES.items():
        answer = await service.client.post("/api/commands", json={"type": "UnloadModel"}, headers={"If-Match": header})
        code = "precondition_failed" if status == 412 else "bad_request"
        assert (answer.status_code, answer.json()["code"]) == (status, code), name
    after = await service.events()
    # What was understood and refused is on record; nothing else happened.
    kinds = {(event["type"], event["data"]["error"]["code"]) for event in after[len(before) :]}
    assert kinds == {("CommandRejected", "precondition_failed")}
