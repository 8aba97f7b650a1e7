"""`log explain` on real files: what it prints, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_actor.domain.commands import RequestedIntervention
from sae_actor.domain.events import HookFaulted, PresetDeleted, PresetSae, PresetSaved, Problem, SteeringChanged
from sae_actor.domain.messages import RequestedStop
from sae_actor.domain.refs import Edit
from tests.cli.conftest import Ran
from tests.cli.logs import FIRST, SECOND, a_life, admitted, ended, write
from tests.cli.test_log_reading import damage
from tests.domain.dsl import MODEL, A

Command = Callable[..., Ran]
PRINCIPALS = {2: "configuration", 8: "alice", 11: "bob", 12: "carol"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write(tmp_path / "log", a_life(), PRINCIPALS)
    return tmp_path / "log"


@pytest.fixture
def explain(log: Path, command: Command) -> Command:
    def run(*argv: str) -> Ran:
        return command("log", "explain", *argv, "--data-dir", str(log))

    return run


def test_in_plain_words(log: Path, explain: Command, command: Command) -> None:
    head = json.loads(command("log", "verify", "--json", "--data-dir", str(log)).out)["head"]
    ran = explain("gen-2")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == "gen-2: completion, requested by carol"
    expected = (
        "began        position 12, 2026-01-01T00:00:12.000000Z",
        f"model        {MODEL}, float32 on cpu",
        f"  revision   main, commit {'0' * 40}",
        f"  file       model.safetensors sha256 {'c' * 64}",
        f"  tokenizer  sha256 {'d' * 64}",
        "  since           2  2026-01-01T00:00:02.000000Z  ModelLoadRequested    configuration",
        "intervention the server's:",
        f"  sae        {A} at resid_post.1, mode steer",
        "    weights  sha256 weights of a",
        "    edit     feature 3: adds 7.5 times its decoder row, at every position except attention sinks (the first "
        "position, and outliers of the norm)",
        "    edit     feature 4: takes its contribution out (activation times 0), at positions 1 to 8",
        "                  7  2026-01-01T00:00:07.000000Z  SaeAttached           me",
        "                 11  2026-01-01T00:00:11.000000Z  SteeringChanged       bob",
        "sampling     temperature 0.7, top_p 0.9, seed 7, at most 16 tokens, stop at '\\n'",
        "ended        position 13, 2026-01-01T00:00:13.000000Z",
        "tokens       5 of the prompt, 3 generated",
        "  written to 6, positions 1–6",
        "  excluded   1, positions 0",
        "             the recorded intervention matches the events before it",
        f"log          verified: 13 events, head 13 {head['hash']}",
    )
    assert [line for line in expected if line not in lines] == []
    assert any(line.startswith("  environment sha256 ") for line in lines)
    assert any(line.endswith(": the same") for line in lines)
    assert "SteeringChanged       alice" not in ran.out
    assert "SteeringChanged       alice" in explain("gen-1").out


def test_as_json(explain: Command) -> None:
    view = json.loads(explain("gen-1", "--json").out)
    assert (view["generation_id"], view["tag"], view["finish_reason"]) == ("gen-1", "first", "stop")
    assert [edit["feature"] for edit in view["intervention"][0]["steering"]] == [3]
    assert [each["principal"] for each in view["intervention"][0]["since"]] == ["me", "me", "me", "alice"]
    assert view["digest"]["agrees"] is True
    assert view["log"]["ok"] is True
    assert (view["edited"], view["excluded"]) == ([[1, 7]], [[0, 1]])
    assert view["receipt"]["mean_relative_norm"] == 0.25


SINKS = "attention sinks (the first position, and outliers of the norm)"


def _reconstructing(**changes: Any) -> dict[str, object]:
    return {"interventions": (RequestedIntervention(sae_id=A, mode="reconstruct", **changes),)}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"baseline": True}, f"intervention none: the request asked for the baseline (attached was {A})"),
        (
            {"steering": (Edit(feature=9, strength=1.0),)},
            "intervention the request's own, in place of the server's:",
        ),
        ({"steering": ()}, "    edit     none: nothing was steered"),
        (
            {"stop_when": RequestedStop(feature=9, above=2.5)},
            f"             until feature 9 of {A} is above 2.5, except at {SINKS}",
        ),
        (
            {"stop_when": RequestedStop(feature=9, above=2.5, exclude=())},
            f"             until feature 9 of {A} is above 2.5",
        ),
        (_reconstructing(), f"    passes   {SINKS} through"),
        (_reconstructing(exclude=()), "    passes   nothing through"),
        (_reconstructing(exclude=("special", "sink")), f"    passes   {SINKS} and special tokens through"),
        (
            _reconstructing(steering=(Edit(feature=9, strength=1.0, exclude=("template",)),)),
            "    passes   the tokens of the chat template through",
        ),
        ({"watch": True}, f"             activations reported for {A}"),
        ({"deterministic": True}, "             deterministic: alone on the device"),
    ],
)
def test_what_the_request_brought(request_: dict[str, object], expected: str, tmp_path: Path, command: Command) -> None:
    write(tmp_path / "other", ended(admitted(a_life(), "g", **request_), "g"))
    assert expected in command("log", "explain", "g", "--data-dir", str(tmp_path / "other")).out.splitlines()


@pytest.mark.parametrize("reason", ["length", "feature", "intervention_removed", "cancelled", "error", "interrupted"])
def test_how_it_ended(reason: str, tmp_path: Path, command: Command) -> None:
    error = Problem(code="internal", detail="the hook raised") if reason == "error" else None
    receipt = {} if reason == "length" else {"receipt": None, "edited": (), "excluded": ()}
    story = ended(admitted(a_life(), "g"), "g", finish_reason=reason, error=error, text="a\x1b[2J", **receipt)
    fault = HookFaulted(sae_id=A, request_position=6, error=Problem(code="internal", detail="d"))
    write(tmp_path / "other", story.and_then(fault))
    ran = command("log", "explain", "g", "--data-dir", str(tmp_path / "other"))
    assert f"  {reason}: " in ran.out
    assert ("  error      the hook raised (internal)" in ran.out) is (reason == "error")
    assert ("no receipt" in ran.out) is (reason != "length")
    assert "\x1b" not in ran.out


def test_without_a_checkpoint_it_says_what_is_not_proven(tmp_path: Path, command: Command) -> None:
    write(tmp_path / "other", ended(admitted(a_life(), "g"), "g"))
    (tmp_path / "other" / "head.checkpoint").unlink()
    ran = command("log", "explain", "g", "--data-dir", str(tmp_path / "other"))
    assert ran.code == 0
    assert "log          unproven: 15 events verify, head 15 " in ran.out
    told = json.loads(command("log", "explain", "g", "--json", "--data-dir", str(tmp_path / "other")).out)["log"]
    assert (told["ok"], told["unproven"], told["events"]) == (False, True, 15)


def test_without_an_end_and_out_of_force(tmp_path: Path, command: Command) -> None:
    off = a_life().and_then(SteeringChanged(sae_id=A, features=(FIRST, SECOND), enabled=False))
    write(tmp_path / "other", admitted(off, "g"))
    ran = command("log", "explain", "g", "--data-dir", str(tmp_path / "other"))
    assert "ended        no end is on record" in ran.out.splitlines()
    assert "    edit     none: the server's steering was switched off" in ran.out.splitlines()


def test_after_an_erasure(log: Path, explain: Command, command: Command) -> None:
    assert command("log", "redact", "9", "--why", "asked for", "--data-dir", str(log)).code == 0
    ran = explain("gen-1")
    assert ran.code == 0
    assert "the payload of that event was erased" in ran.out
    assert "intervention the server's, as it was when the generation began:" in ran.out
    assert ": the same" in ran.out
    assert command("log", "redact", "10", "--why", "asked for", "--data-dir", str(log)).code == 0
    gone = explain("gen-1")
    assert (gone.code, gone.out) == (64, "")
    assert "the payloads of events 9, beginnings of texts, were erased" in gone.err


def test_what_is_not_there(explain: Command, tmp_path: Path, command: Command) -> None:
    assert explain("gen-3") == (64, "", "sae-actor: the log has no generation gen-3 (not_found)\n")
    assert explain().code == 64
    assert command("log", "explain", "g", "--data-dir", str(tmp_path / "none")).code == 78


def test_a_damaged_log(log: Path, explain: Command) -> None:
    damage(log, 13, b"{}")
    told = explain("gen-1")
    assert told.code == 0
    assert told.out.endswith("log          damaged from position 13 on; everything shown here lies before it\n")
    for name in ("gen-2", "gen-3"):  # of the one only the beginning is sound, the other may be in what is not
        refused = explain(name)
        assert (refused.code, refused.out) == (65, "")


def test_needs_no_torch(log: Path) -> None:
    told = (
        "import sys\nfrom sae_actor.cli import main\n"
        f"assert main(['log', 'explain', 'gen-1', '--data-dir', {str(log)!r}]) == 0\n"
        f"assert main(['log', 'diff', '1', '9', '--data-dir', {str(log)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'litestar', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", told], check=True, capture_output=True)


def test_under_a_preset(tmp_path: Path, command: Command) -> None:
    sae = PresetSae(sae_id=A, weights_sha256="weights of a", steering=(FIRST,), asked=(FIRST,))
    story = a_life().and_then(PresetSaved(name="calm", interventions=(sae,), description="less of it"))
    saved = story.position
    story = ended(admitted(story, "gen-9", preset="calm"), "gen-9")
    story = story.and_then(PresetSaved(name="calm", interventions=()), PresetDeleted(name="calm"))
    write(tmp_path / "log", story)
    told = ("--data-dir", str(tmp_path / "log"))
    ran = command("log", "explain", "gen-9", *told)
    assert ran.code == 0, ran.err
    assert f"intervention the preset calm, saved at position {saved}:" in ran.out
    assert f"{saved:>6}  2026-01-01T00:00:{saved:02d}.000000Z  PresetSaved" in ran.out
    assert "feature 3: adds 7.5 times its decoder row" in ran.out
    assert f"preset      calm, saved at position {saved}" in command("log", "state", "--at", str(saved), *told).out
    assert "preset      calm" not in command("log", "state", *told).out
    came = command("log", "diff", str(saved - 1), str(saved), *told).out
    assert f"preset      calm was saved\n  new       {A}, steer\n  edit      feature 3: adds 7.5 times" in came
    changed = command("log", "diff", str(saved), str(saved + 3), *told).out
    assert "preset      calm was saved anew\n  description: less of it → none\n  was  " in changed
    assert "preset      calm was deleted" in command("log", "diff", str(saved), str(story.position), *told).out
