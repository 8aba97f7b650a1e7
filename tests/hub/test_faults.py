"""Rows 42 to 51 of FAULTS.md: a hub that lies, refuses, limits, stalls, cuts or redirects.

After every fault: the error that the table names, no file that counts as complete, nothing outside the hub's
folder, no token or signed address in the error; and once a store is well again the next try succeeds.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from sae_actor.errors import SAEError
from sae_actor.hub import HuggingFaceHub, Patience
from sae_actor.ports import HubSae
from tests.fakes.hub_handler import SIGNATURE
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files
from tests.hub.conftest import QUICK, TOKEN, MakeHub, Told, download, files_below, real_hub

PATH = "layer.1"
FILES = {**sae_files(PATH, d_in=64, d_sae=256), "README.md": b"read me"}
WEIGHTS = f"{PATH}/sae_weights.safetensors"
SIZE = len(FILES[WEIGHTS])
HTML = b"<html><body>Please log in</body></html>"
FAR = "http://169.254.169.254/latest/meta-data"
HEX = "ab" * 32


def fails(name: str, code: str, reason: str | None, *faults: dict[str, Any], tries: int = 1) -> Any:
    return pytest.param(code, reason, faults, tries, id=name)


def head(**changes: str | None) -> dict[str, Any]:
    return {"on": "head", "path": "weights", "headers": {k.replace("_", "-"): v for k, v in changes.items()}}


FAILED = "sae_download_failed"
HIDDEN = "not_found_or_private"
REFUSALS = [
    # 42: names that the server chooses
    fails("etag leads out", FAILED, "bad_etag", head(X_Linked_Etag='"../../../../canary"')),
    fails("etag of 300 characters", FAILED, "bad_etag", head(X_Linked_Etag=f'"{"a" * 300}"')),
    fails("weak etag", FAILED, "bad_etag", head(X_Linked_Etag='W/"x"')),
    fails("etag of another file", FAILED, "bad_etag", head(X_Linked_Etag=f'"{HEX}"')),
    fails("commit header leads out", FAILED, "bad_commit", head(X_Repo_Commit="../x")),
    fails("commit leads out", FAILED, "bad_commit", {"on": "info", "body": b'{"id": "org/saes", "sha": "../../x"}'}),
    fails("commit is missing", FAILED, "bad_commit", {"on": "info", "body": b'{"id": "org/saes"}'}),
    # 43, 44: refusals, asked once
    fails("401 bare", HIDDEN, "auth_required", {"on": "info", "status": 401}),
    fails("401 no such repository", HIDDEN, "not_found", {"on": "info", "status": 401, "code": "RepoNotFound"}),
    fails("403 gated", "gated", "gated", {"on": "head", "status": 403, "code": "GatedRepo"}),
    fails("403 bare", "forbidden", "forbidden", {"on": "head", "status": 403}),
    fails("403 for the body", "forbidden", "forbidden", {"on": "store", "status": 403}),
    fails("404 bare", HIDDEN, "not_found", {"on": "info", "status": 404}),
    fails("404 entry", HIDDEN, "not_found", {"on": "head", "status": 404, "code": "EntryNotFound"}),
    fails("404 revision", HIDDEN, "not_found", {"on": "info", "status": 404, "code": "RevisionNotFound"}),
    fails("400", FAILED, "http", {"on": "paths", "status": 400}),
    # 45: limits and failures that do not end
    fails("429 for ever", FAILED, "rate_limited", {"on": "info", "status": 429}, tries=4),
    fails("500 for ever", FAILED, "hub_unavailable", {"on": "info", "status": 500}, tries=4),
    fails("503 for the body", FAILED, "hub_unavailable", {"on": "store", "status": 503}, tries=4),
    # 46: silence
    fails("connection dropped", FAILED, "connection", {"on": "info", "drop": True}, tries=4),
    fails("body dropped", FAILED, "connection", {"on": "store", "drop": True}, tries=4),
    fails("body never begins", FAILED, "timeout", {"on": "store", "hang": 5.0}, tries=4),
    fails("one byte at a time", FAILED, "stalled", {"on": "store", "drip": 0.05}, tries=4),
    # 47: wrong bodies
    fails("always cut", FAILED, "connection", {"on": "store", "cut_after": 100}, tries=4),
    fails("too long", FAILED, "too_long", {"on": "store", "surplus": 9, "headers": {"Content-Length": None}}),
    fails("length says more", FAILED, "bad_size", {"on": "store", "headers": {"Content-Length": str(SIZE + 1)}}),
    fails("length says less", FAILED, "bad_size", {"on": "store", "headers": {"Content-Length": str(SIZE - 1)}}),
    fails("gzip", FAILED, "encoding", {"on": "store", "encode": "gzip"}),
    fails(
        "wrong range", FAILED, "bad_range",
        {"on": "store", "cut_after": 1000, "times": 1}, {"on": "store", "shift_range": 7},
    ),
    # 48: wrong bytes of the right length, a page in place of the file
    fails("one bit off", FAILED, "integrity", {"on": "store", "corrupt": "flip"}),
    fails("all zeros", FAILED, "integrity", {"on": "store", "corrupt": "zero"}),
    fails("settings off", FAILED, "integrity", {"on": "get", "corrupt": "flip"}),
    fails("login page for the weights", FAILED, "bad_size", {"on": "store", "body": HTML}),
    fails("login page for the commit", FAILED, "protocol", {"on": "info", "body": HTML}),
    fails("login page for the list", FAILED, "protocol", {"on": "tree", "body": HTML}),
    fails("a list of something else", FAILED, "protocol", {"on": "tree", "body": b'[{"type": "file"}]'}),
    # 49: redirects
    fails("redirect to a file", FAILED, "redirect", head(Location="file:///etc/passwd")),
    fails("redirect to the machine's own metadata", FAILED, "redirect", head(Location=FAR)),
    fails("store redirects away", FAILED, "redirect", {"on": "store", "location": FAR}),
    fails("store redirects to another host", FAILED, "redirect", {"on": "store", "location": "http://evil.example/x"}),
    fails("list redirects away", FAILED, "redirect", {"on": "tree", "location": FAR}),
    # 50: what is missing or cannot be
    fails("no etag", FAILED, "bad_etag", head(X_Linked_Etag=None, ETag=None)),
    fails("no commit", FAILED, "bad_commit", head(X_Repo_Commit=None)),
    fails("no size", FAILED, "bad_size", head(X_Linked_Size=None)),
    fails("a size of 10^15", FAILED, "bad_size", head(X_Linked_Size=str(10**15))),
    fails("a negative size", FAILED, "bad_size", head(X_Linked_Size="-5")),
    # 51: another commit than the one asked for
    fails("another commit answers", FAILED, "moved", head(X_Repo_Commit="c" * 40)),
]  # fmt: skip


async def refused(hub: HuggingFaceHub, told: Told | None = None) -> SAEError:
    with pytest.raises(SAEError) as raised:
        await hub.download(download(path=PATH), told or Told())
    shown = f"{raised.value} {raised.value.fields}"
    assert TOKEN not in shown
    assert SIGNATURE not in shown
    return raised.value


def nothing_counts_as_complete(folder: Path, tmp_path: Path) -> None:
    """Blobs are the listed files or unfinished; no snapshot, no ref; no file anywhere else."""
    for name in files_below(tmp_path / "data"):
        assert re.fullmatch(
            r"hub/models--org--saes/(blobs/[0-9a-f]{40,64}(\.incomplete)?|\.claims/[\w.-]+\.json)", name
        )
    assert not list(folder.glob("*/snapshots/*/*"))
    weights = [b for b in folder.glob("*/blobs/*") if b.stat().st_size == SIZE and b.suffix == ""]
    assert not weights


HEALED = ("integrity", "too_long", "bad_range", "stalled")
"""Failures that leave something on disk, or must not: the next try is made as well."""


class Outcome:
    """What one case came to, in a folder and with a hub of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.error: SAEError | None = None
        self.asked = 0
        self.again: HubSae | None = None


async def put_through(faults: tuple[dict[str, Any], ...], tmp_path: Path) -> Outcome:
    outcome = Outcome(tmp_path)
    with HubServer() as server:
        hub = real_hub(server, tmp_path)
        server.publish("org/saes", FILES)
        for fault in faults:
            server.fault(**fault)
        outcome.error = await refused(hub)
        outcome.asked = len(server.asked(faults[-1]["on"]))
        nothing_counts_as_complete(hub.folder, tmp_path)
        if outcome.error.fields.get("reason") in HEALED:
            server.heal()
            outcome.again = await hub.download(download(path=PATH, at=2), Told())
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome | BaseException]:
    """All cases, several at a time: most of each is a process that starts, or a wait."""
    found: dict[str, Outcome | BaseException] = {}

    async def run_all() -> None:
        turns = anyio.Semaphore(4)

        async def run(name: str, faults: tuple[dict[str, Any], ...]) -> None:
            async with turns:
                try:
                    found[name] = await put_through(faults, tmp_path_factory.mktemp("case"))
                except (AssertionError, SAEError, pytest.fail.Exception) as error:
                    found[name] = error

        async with anyio.create_task_group() as tasks:
            for case in REFUSALS:
                tasks.start_soon(run, case.id, case.values[2])

    anyio.run(run_all)
    return found


@pytest.mark.parametrize(("code", "reason", "faults", "tries"), REFUSALS)
def test_a_fault_ends_in_its_error(
    *,
    request: pytest.FixtureRequest,
    outcomes: dict[str, Outcome | BaseException],
    code: str,
    reason: str | None,
    faults: tuple[dict[str, Any], ...],
    tries: int,
) -> None:
    outcome = outcomes[request.node.callspec.id]
    if isinstance(outcome, BaseException):
        raise outcome
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.fields.get("reason")) == (code, reason)
    if faults[-1]["on"] not in ("head", "get"):  # of which there is one for each file
        assert outcome.asked - sum(fault.get("times") or 0 for fault in faults) == tries
    if reason in HEALED:
        assert outcome.again is not None
        assert outcome.again.sae.d_sae == 256


@pytest.mark.anyio
async def test_the_token_goes_to_no_other_origin(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", FILES)
    server.fault("tree", location=f"{server.store_url}/elsewhere", times=1)
    await refused(hub)
    await hub.download(download(path=PATH, at=2), Told())
    assert all("authorization" in each.headers for each in server.asked("info", "tree", "paths", "head"))
    stored = server.asked("store")
    assert len(stored) == 2
    assert not any("authorization" in each.headers or TOKEN in str(each.headers) for each in stored)


@pytest.mark.anyio
async def test_redirects_without_end_are_followed_twenty_times_at_most(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", FILES)
    for kind in ("info", "head"):
        here = "/api/models/org/saes/revision/main" if kind == "info" else f"/org/saes/resolve/main/{WEIGHTS}"
        server.fault(kind, location=here)
        assert (await refused(hub)).fields["reason"] == "redirect"
        assert len(server.asked(kind)) <= 21
        server.heal()


@pytest.mark.anyio
async def test_hosts_that_are_not_listed_get_no_request(server: HubServer, make_hub: MakeHub) -> None:
    server.publish("org/saes", FILES)
    server.store_url = server.store_url.replace("127.0.0.1", "localhost")
    error = await refused(make_hub(download_hosts=("huggingface.co",)))
    assert error.fields["reason"] == "redirect"
    assert not server.asked("store")
    await make_hub(download_hosts=("localhost",)).download(download(path=PATH, at=2), Told())


@pytest.mark.anyio
async def test_a_cut_costs_only_what_is_missing(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", FILES)
    server.fault("store", cut_after=SIZE // 2, times=1)
    await hub.download(download(path=PATH), Told())
    first, second = server.asked("store")
    assert second.headers["range"] == f"bytes={first.sent}-"
    assert first.sent + second.sent == SIZE


@pytest.mark.anyio
async def test_a_server_without_ranges_is_asked_for_everything_again(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", FILES)
    server.fault("store", cut_after=SIZE // 2, times=1)
    server.fault("store", ignore_range=True)
    assert (await hub.download(download(path=PATH), Told())).sae.d_in == 64
    assert server.sent("store") == SIZE // 2 + SIZE


@pytest.mark.anyio
@pytest.mark.parametrize("after", ["1", "1000000000", "-1", "soon", "Wed, 21 Oct 2065 07:28:00 GMT", None])
async def test_retry_after_is_heard_but_never_obeyed_without_bound(
    server: HubServer, hub: HuggingFaceHub, after: str | None
) -> None:
    server.publish("org/saes", FILES)
    server.fault("tree", status=429, headers={"Retry-After": after}, times=1)
    told, start = Told(), time.monotonic()
    await hub.download(download(path=PATH), told)
    assert time.monotonic() - start < 5
    first, second = (each.at for each in server.asked("tree"))
    asked_to_wait = after is not None and after not in ("-1", "soon")
    assert second - first >= (QUICK.backoff_cap_seconds if asked_to_wait else QUICK.backoff_seconds)


@pytest.mark.anyio
async def test_failures_that_end_are_waited_out_and_said(server: HubServer, make_hub: MakeHub) -> None:
    server.publish("org/saes", FILES)
    for status in (500, 502, 503):
        server.fault("head", status=status, times=1)
    patience = Patience(backoff_seconds=0.2, backoff_cap_seconds=0.3)
    told = Told()
    await make_hub(patience=patience).download(download(path=PATH), told)
    waits = [message for message in told.messages if message.phase == "waiting"]
    assert waits
    assert {wait.reason for wait in waits} == {"hub_unavailable"}
    assert all(wait.seconds_left is not None and wait.seconds_left > 0 for wait in waits)


def test_the_defaults_are_those_of_the_fault_table() -> None:
    patience = Patience()
    assert (patience.stall_seconds, patience.slow_seconds, patience.slow_bytes) == (30, 60, 10_000)
    assert (patience.backoff_cap_seconds, patience.tries) == (60, 5)
