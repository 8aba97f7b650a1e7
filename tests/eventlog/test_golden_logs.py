"""Row 25: the logs of every released version read, verify, and mean what they meant; old schemas are read as new ones.

`make_golden` writes the one of a version before it is released.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sae_actor import __version__
from sae_actor.domain.commands import Steer
from sae_actor.domain.events import PAYLOADS, Event, MonitoringChanged, SteeringChanged
from sae_actor.domain.events.upcasting import UPCASTERS, upcast
from sae_actor.domain.evolve import evolve, fold
from sae_actor.domain.refs import Edit
from sae_actor.domain.state import EMPTY
from sae_actor.domain.views.resources import state_view
from sae_actor.eventlog import SqliteLog, events_of, export_bundle, import_bundle, verify_folder
from tests.actor.world import A, begin
from tests.domain.test_golden_events import _lost as lost
from tests.eventlog.audit.test_bundle import verify_bare
from tests.eventlog.making import a_draft, content, shown
from tests.fold_by_hand import views

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden log: opening one may write."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "golden")
    return tmp_path / "golden"


def log_of(golden: Path, to: Path) -> Path:
    to.mkdir()
    for name in ("events.db", "head.checkpoint"):
        shutil.copy(golden / name, to / name)
    return to


def test_row_25_the_version_to_be_released_has_its_golden_log() -> None:
    assert __version__ in VERSIONS, "python -m tests.eventlog.make_golden"


async def test_row_25_a_golden_log_folds_to_the_states_it_was_shipped_with(golden: Path, tmp_path: Path) -> None:
    folder = log_of(golden, tmp_path / "log")
    before = content(folder)
    verification = await verify_folder(folder)
    assert verification.ok
    events = [event async for event in events_of(folder)]
    assert content(folder) == before
    state, states = EMPTY, {}
    for event in events:
        state = evolve(state, event)
        states[state.position] = json.loads(msgspec.json.encode(state_view(state)))
    shipped = json.loads((golden / "states.json").read_bytes())
    assert len(shipped) >= len(events) // 10
    for view in shipped:
        # What is shown may have grown since; nothing that was shown is gone or another.
        assert lost(view, states[view["position"]]) == []
    log = await SqliteLog.open(folder)
    await log.append([a_draft()], expected=len(events))
    assert (await log.verify()).ok
    await log.close()


async def test_row_25_a_golden_export_is_the_same_export_today(golden: Path, tmp_path: Path) -> None:
    folder = log_of(golden, tmp_path / "log")
    await export_bundle(folder, tmp_path / "bundle")
    for name in ("events.ndjson",):
        assert (tmp_path / "bundle" / name).read_bytes() == (golden / "bundle" / name).read_bytes()
    assert verify_bare(golden / "bundle")[0] == 0, "by the verifier it was shipped with"
    shutil.copy(tmp_path / "bundle" / "verify.py", golden / "bundle" / "verify.py")
    assert verify_bare(golden / "bundle")[0] == 0, "by today's"
    await import_bundle(golden / "bundle", tmp_path / "imported")
    original = [event async for event in events_of(folder)]
    assert shown([event async for event in events_of(tmp_path / "imported")]) == shown(original)
    lines = (golden / "bundle" / "events.ndjson").read_bytes().splitlines()
    *_, (_, by_hand) = views(lines)
    assert by_hand == json.loads(msgspec.json.encode(state_view(fold(original))))


# — schemas —


def test_every_step_between_schemas_is_there() -> None:
    expected = {(name, schema) for name, cls in PAYLOADS.items() for schema in range(1, cls.schema)}
    assert set(UPCASTERS) == expected
    assert PAYLOADS["PayloadRedacted"].schema == PAYLOADS["LogTruncated"].schema == 1, "the chain reads them itself"


@pytest.fixture
def in_schema_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if SteeringChanged had once said `off` for what is `enabled` now, and before that one `feature` alone."""
    monkeypatch.setattr(SteeringChanged, "schema", 3)
    monkeypatch.setitem(UPCASTERS, ("SteeringChanged", 1), lambda old: {"features": [old.pop("feature")], **old})
    monkeypatch.setitem(UPCASTERS, ("SteeringChanged", 2), lambda old: {"enabled": not old.pop("off", False), **old})


OLD: list[tuple[int, dict[str, Any]]] = [
    (1, {"sae_id": A, "feature": {"feature": 3, "strength": 7.0}, "off": True, "mood": "unknown to anyone"}),
    (2, {"sae_id": A, "features": [{"feature": 4, "strength": -1}], "mood": 1}),
]


@pytest.mark.usefixtures("in_schema_3")
async def test_events_of_old_schemas_are_read_as_new_ones_and_served_as_they_were(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    world = await begin(log)
    await world.attached("a")
    await world.actor.stop()
    for number, (schema, data) in enumerate(OLD):
        old = msgspec.structs.replace(
            a_draft(), type="SteeringChanged", schema=schema, data=msgspec.Raw(msgspec.json.encode(data)),
            event_id=f"old-{number}",
        )  # fmt: skip
        (event,) = await log.append([old], expected=log.head.position)
        edit = Edit(3, 7.0) if schema == 1 else Edit(4, -1.0)
        assert event.payload() == SteeringChanged(sae_id=A, features=(edit,), enabled=schema != 1)
        assert msgspec.json.decode(event.data) == data, "the bytes are those that were written"
    # A service goes on behind them, in the schema of today.
    world = await begin(log, world.hub)
    await world.converged()
    (attached,) = world.state.attached
    assert (attached.steering, attached.enabled) == ((Edit(4, -1.0),), True)
    await world.done(Steer(A, (Edit(5, 1.0),)))
    events = await world.events()
    assert [e.schema for e in events if e.type == "SteeringChanged"] == [1, 2, 3]
    await world.check()
    await world.actor.stop()
    await log.close()
    assert (await verify_folder(tmp_path)).ok
    raw = [json.loads(bytes(event.data)) async for event in events_of(tmp_path, types=["SteeringChanged"])]
    assert raw[:2] == [data for _, data in OLD]


@pytest.mark.usefixtures("in_schema_3")
@pytest.mark.parametrize("data", [b"{}", b"null", b"[1]", b'"x"', b'{"feature":1,"sae_id":2}', b'{"feature":'])
def test_what_no_step_can_be_made_of_moves_the_position_and_nothing_else(data: bytes) -> None:
    event = Event(position=7, event_id="e", type="SteeringChanged", schema=1, time="", command_id=None,
                  principal="p", data=msgspec.Raw(data), hash="")  # fmt: skip
    assert evolve(EMPTY, event) == msgspec.structs.replace(EMPTY, position=7)


def test_a_step_that_is_not_there() -> None:
    with pytest.raises(msgspec.ValidationError, match="MonitoringChanged of schema 1"):
        upcast("MonitoringChanged", 1, 2, {})
    assert MonitoringChanged.schema == 1
