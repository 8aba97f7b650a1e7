"""`backup` and `restore`: what they print, and with what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.conftest import Running
from tests.cli.conftest import Ran
from tests.cli.logs import a_life, write

Command = Callable[..., Ran]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write(tmp_path / "log", a_life())
    return tmp_path / "log"


def test_words(log: Path, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "b.tar"
    head = json.loads(command("log", "verify", "--data-dir", str(log), "--json").out)["head"]
    ran = command("backup", str(file), "--data-dir", str(log))
    noted = f"{head['position']}:{head['hash']}"
    assert ran.out.splitlines() == [
        f"13 events backed up to {file}, head {noted}",
        f"restore them with: sae-actor restore {file} --data-dir FOLDER",
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    ran = command("restore", str(file), "--data-dir", str(tmp_path / "new"))
    assert ran.out.splitlines()[0] == f"13 events restored into {tmp_path / 'new'}, head {noted}"
    assert "not in the backup: the files of org-saes-a-main-190766e6, from org/saes a at " in ran.out
    assert command("log", "verify", "--data-dir", str(tmp_path / "new"), "--head", noted).code == 0


def test_json(log: Path, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "b.tar"
    head = json.loads(command("log", "verify", "--data-dir", str(log), "--json").out)["head"]
    told = json.loads(command("backup", str(file), "--data-dir", str(log), "--json").out)
    assert (told["file"], told["bytes"], told["head"]) == (str(file), file.stat().st_size, head)
    back = json.loads(command("restore", str(file), "--data-dir", str(tmp_path / "new"), "--json").out)
    assert (back["data_dir"], back["head"], back["events"]) == (str(tmp_path / "new"), head, 13)
    assert back["saes"] == told["saes"]


def test_refusals(log: Path, tmp_path: Path, command: Command) -> None:
    file, folder = tmp_path / "b.tar", ("--data-dir", str(log))
    assert command("backup", str(file), *folder).code == 0
    ran = command("backup", str(file), *folder)
    assert (ran.code, "overwrites nothing" in ran.err) == (64, True)
    ran = command("restore", str(file), *folder)
    assert (ran.code, "is not empty" in ran.err) == (78, True)
    assert command("restore", str(tmp_path / "none"), "--data-dir", str(tmp_path / "new")).code == 64
    file.write_bytes(file.read_bytes()[:-4096])
    assert command("restore", str(file), "--data-dir", str(tmp_path / "new")).code == 65
    assert command("restore", str(log / "events.db"), "--data-dir", str(tmp_path / "new")).code == 65
    assert not (tmp_path / "new").exists()
    assert command("backup", str(tmp_path / "no" / "b.tar"), *folder).code == 78
    assert command("backup", str(tmp_path / "c.tar"), "--data-dir", str(tmp_path / "nothing")).code == 78
    assert command("backup", str(tmp_path / "c.tar.gz"), *folder).code == 64
    assert command("backup", str(tmp_path / "c.tar"), "--url", "http://127.0.0.1:9").code == 69
    assert command("backup", str(tmp_path / "c.tar"), "--url", "nonsense").code == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "log"]


def test_a_log_in_memory_has_nothing_to_back_up(service: Running, tmp_path: Path, command: Command) -> None:
    ran = command("backup", str(tmp_path / "b.tar"), "--url", service.url)
    assert (ran.code, "in memory" in ran.err) == (64, True)
    assert list(tmp_path.iterdir()) == []


def test_row_78_a_log_without_its_checkpoint(log: Path, tmp_path: Path, command: Command) -> None:
    (log / "head.checkpoint").unlink()
    ran = command("backup", str(tmp_path / "b.tar"), "--data-dir", str(log))
    assert (ran.code, "no head.checkpoint" in ran.err) == (0, True)
    ran = command("restore", str(tmp_path / "b.tar"), "--data-dir", str(tmp_path / "new"))
    assert (ran.code, "no head.checkpoint" in ran.err) == (0, True)
    assert command("log", "verify", "--data-dir", str(tmp_path / "new")).code == 65
