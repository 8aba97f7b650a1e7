"""Generated clients are built, and make a call of each kind: `-m clients`, minutes each."""

from __future__ import annotations

import pytest

from . import frame
from .frame import SCRIPTS, Client, tried
from .listed import CLIENTS


def test_every_script_is_listed() -> None:
    assert sorted(each.script for each in CLIENTS) == sorted(each.name for each in SCRIPTS.glob("*.*"))
    assert len({each.name for each in CLIENTS}) == len(CLIENTS)


def test_a_client_that_hangs_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "SECONDS", 0.0)
    row = tried(Client("hangs", (), "openai_python.py"), "http://127.0.0.1:1")
    assert row.failed
    assert row.remark.endswith("had not ended after 0.0 s")


@pytest.mark.clients
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_client_runs(client: Client) -> None:
    if client.missing:
        pytest.skip(f"needs {', '.join(client.missing)}")
    row = tried(client)
    assert not row.failed, row
