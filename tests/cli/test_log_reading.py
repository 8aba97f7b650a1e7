"""`log show` with its filters, `log state` and `log diff`, on real files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from sae_actor.domain.events import MonitoringChanged, SteeringChanged
from sae_actor.domain.evolve import fold
from sae_actor.domain.views.difference import difference
from sae_actor.domain.views.resources import state_view
from tests.cli.conftest import Ran
from tests.cli.logs import FIRST, a_life, write
from tests.domain.dsl import MODEL, REPOSITORY, A

Command = Callable[..., Ran]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write(tmp_path / "log", a_life(), {1: "system", 8: "alice", 11: "bob"})
    return tmp_path / "log"


@pytest.fixture
def at(log: Path, command: Command) -> Command:
    def run(name: str, *argv: str) -> Ran:
        return command("log", name, *argv, "--data-dir", str(log))

    return run


def positions(ran: Ran) -> list[int]:
    assert ran.code == 0
    return [json.loads(line)["position"] for line in ran.out.splitlines()]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (("--command", "c8"), [8]),
        (("--command", "c"), []),
        (("--sae", A), [4, 5, 6, 7, 8, 9, 11, 12]),
        (("--sae", A[:8]), [4, 5, 6, 7, 8, 9, 11, 12]),
        (("--sae", A, "--types", "GenerationStarted,SteeringChanged"), [8, 9, 11, 12]),
        (("--sae", "nothing"), []),
        (("--principal", "alice"), [8]),
        (("--principal", "system"), [1]),
        (("--since", "2026-01-01T00:00:11Z"), [11, 12, 13]),
        (("--since", "2026-01-01T00:00:11.000001Z"), [12, 13]),
        (("--until", "2026-01-01T00:00:02Z"), [1, 2]),
        (("--since", "2026-01-01t01:00:11+01:00", "--until", "2026-01-01 00:00:12.000Z"), [11, 12]),
        (("--since", "2026-01-01T00:00:08Z", "--after", "9", "--principal", "me", "--sae", A), [12]),
        (("--since", "9999-12-31T23:59:59Z"), []),
        (("--since", "0001-01-01T00:00:00Z", "--until", "2026-01-01T00:00:01Z"), [1]),
    ],
)
def test_show_is_filtered(filters: tuple[str, ...], expected: list[int], at: Command) -> None:
    assert positions(at("show", "--json", *filters)) == expected
    assert at("show", *filters).out.count("\n") == len(expected)


@pytest.mark.parametrize(
    "time",
    ["yesterday", "2026-01-01", "2026-01-01T00:00:00", "20260101T000000Z", "2026-13-01T00:00:00Z", "",
     "2026-01-01T00:00:00.1234567Z", "2026-01-01T24:00:01Z", "0001-01-01T00:00:00+01:00", "٢026-01-01T00:00:00Z"],
)  # fmt: skip
def test_what_is_no_time(time: str, at: Command) -> None:
    for argv in (("show", "--since", time), ("show", "--until", time), ("state", "--at", time), ("diff", "1", time)):
        ran = at(*argv)
        assert (ran.code, ran.out) == (64, "")


def test_state_at_a_time(at: Command) -> None:
    assert json.loads(at("state", "--json", "--at", "2026-01-01T00:00:08Z").out) == json.loads(
        at("state", "--json", "--at", "8").out
    )
    assert json.loads(at("state", "--json", "--at", "2026-01-01T00:00:08.999999Z").out)["position"] == 8
    assert json.loads(at("state", "--json", "--at", "2025-12-31T23:59:59Z").out)["position"] == 0
    assert json.loads(at("state", "--json", "--at", "2099-01-01T00:00:00Z").out)["position"] == 13
    for position in (0, 5, 9, 13):
        view = json.loads(at("state", "--json", "--at", str(position)).out)
        assert view == msgspec.json.decode(msgspec.json.encode(state_view(fold(a_life().events[:position]))))


def test_a_clock_that_went_back(tmp_path: Path, command: Command) -> None:
    """The state at a time is that after the last event written then or before, whatever came between."""
    story = a_life()
    turned = [msgspec.structs.replace(e, time="2026-01-01T00:00:05.500000Z") if e.position == 9 else e
              for e in story.events]  # fmt: skip
    story.events = tuple(turned)
    write(tmp_path / "log", story)
    ran = command("log", "state", "--json", "--at", "2026-01-01T00:00:06Z", "--data-dir", str(tmp_path / "log"))
    assert json.loads(ran.out)["position"] == 9


def test_diff(at: Command) -> None:
    steered = at("diff", "8", "11")
    assert steered == (
        0,
        f"from position 8 to 11\nattachment  {A}\n"
        "  new       feature 4: takes its contribution out (activation times 0), at positions 1 to 8\n",
        "",
    )
    back = at("diff", "11", "2026-01-01T00:00:08Z")
    assert "from position 11 to 8\n" in back.out
    assert "  gone      feature 4: " in back.out
    assert at("diff", "9", "10").out.endswith("nothing changed of model, SAEs, attachments, steering and presets\n")
    whole = at("diff", "0", "13").out
    assert f"model       {MODEL} came\n" in whole
    assert f"commit: none → {'0' * 40}\n" in whole
    assert f"sae         {A} came, cached\n  repository_id: {REPOSITORY}\n" in whole
    assert f"attachment  {A} attached at resid_post.1, steer\n" in whole
    assert "edit      feature 3: adds 7.5 times its decoder row" in whole
    gone = at("diff", "13", "0").out
    assert f"model       {MODEL} went\n" in gone
    assert f"sae         {A} went\n" in gone
    assert f"attachment  {A} is not at resid_post.1 any more\n" in gone
    assert "status: loading → loaded" in at("diff", "2", "3").out


def test_diff_as_json(at: Command) -> None:
    events = a_life().events
    for one, other in ((0, 13), (8, 11), (11, 8), (13, 0), (5, 5)):
        view = difference(fold(events[:one]), fold(events[:other]))
        assert json.loads(at("diff", str(one), str(other), "--json").out) == json.loads(msgspec.json.encode(view))


def test_what_is_monitored(tmp_path: Path, command: Command) -> None:
    on = MonitoringChanged(sae_id=A, enabled=True, features=(3, 4), top_k=2)
    write(tmp_path / "log", a_life().and_then(on, replace(on, enabled=False)))

    def told(*argv: str) -> str:
        return command("log", *argv, "--data-dir", str(tmp_path / "log")).out

    words = "the 2 largest activations among features 3 and 4"
    assert f"monitored   {A}: {words}\n" in told("state", "--at", "14")
    assert "monitored" not in told("state")
    assert f"  monitored: nothing → {words}\n" in told("diff", "13", "14")
    assert f"  monitored: {words} → nothing\n" in told("diff", "14", "15")
    assert f"  monitored: {words}\n" in told("diff", "0", "14")
    assert json.loads(told("state", "--at", "14", "--json"))["monitors"] == [
        {"sae_id": A, "features": [3, 4], "top_k": 2, "exclude": [], "position": 14}
    ]


def test_steering_out_of_force_is_told(tmp_path: Path, command: Command) -> None:
    write(tmp_path / "log", a_life().and_then(SteeringChanged(sae_id=A, features=(FIRST,), enabled=False)))
    state = command("log", "state", "--data-dir", str(tmp_path / "log")).out
    assert f"attached    {A} at resid_post.1, steer\n  edit      3=7.5 (exclude sink) (out of force)\n" in state
    assert "out of force" not in command("log", "state", "--data-dir", str(tmp_path / "log"), "--at", "13").out


def test_past_the_head(at: Command) -> None:
    for argv in (("state", "--at", "14"), ("diff", "3", "14"), ("diff", "14", "3")):
        assert at(*argv) == (64, "", "sae-actor: position 14 is past the head 13 (bad_request)\n")


def test_without_a_log(tmp_path: Path, command: Command) -> None:
    assert command("log", "diff", "1", "2", "--data-dir", str(tmp_path)).code == 78


def damage(folder: Path, position: int, data: bytes) -> None:
    with sqlite3.connect(folder / "events.db") as database:
        database.execute("PRAGMA writable_schema = ON")
        triggers = database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE events SET data = ? WHERE position = ?", (data, position))
        for _, sql in triggers:
            database.execute(sql)
    database.close()


@pytest.mark.parametrize("data", [b'{"sae_id":"other"}', b'{"sae_id":', b'"\xff"'])
def test_a_damaged_log_is_told_from_up_to_the_damage(data: bytes, log: Path, at: Command) -> None:
    damage(log, 11, data)
    assert at("verify").code == 65
    assert at("diff", "8", "10").code == 0
    assert at("diff", "8", "11").code == 65
    assert at("state", "--at", "10").code == 0
    for argv in (("state",), ("state", "--at", "2026-01-01T00:00:01Z"), ("diff", "1", "2026-01-01T00:00:02Z")):
        refused = at(*argv)
        assert refused.code == 65
        assert "event 11" in refused.err
    assert at("show").out.count("\n") == 13
    assert at("show", "--sae", A).code == 0
    assert at("show", "--json").out.count("\n") == 13
