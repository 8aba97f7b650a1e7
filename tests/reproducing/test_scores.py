"""`log reproduce` on texts that were scored: their scores come out again, or it says by how much they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from sae_actor.domain.refs import Span
from tests.cli.conftest import Ran
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.conftest import CHAT, Reproduce
from tests.reproducing.making import View, changing, edit, forged, recording, stronger

OWN = (edit(7, -20.0, positions="generated"), edit(2, 4.0, method="set", positions=Span(from_=1, to=3)))
ROLE = (edit(4, 25.0, positions=Span(role="user"), exclude=("template",)),)


class ScoredLog(NamedTuple):
    folder: Path
    texts: dict[str, str]


@pytest.fixture(scope="module", params=[True, False], ids=["texts on record", "no texts"])
def scored_log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ScoredLog:
    home = tmp_path_factory.mktemp("scores")
    model, sae = save_tiny_model(home / "model"), save_tiny_sae(home / "sae")
    texts: dict[str, str] = {}

    async def live() -> None:
        async with recording(home / "log", model, record_text=request.param) as service:
            sae_id = await service.attach(sae)
            await service.steer(sae_id, edit(3, 30.0), edit(5, 0.0, method="scale", exclude=("sink",)))

            async def score(prompt: object, more: str | None, *names: str, last: bool = False) -> None:
                fields: dict[str, dict[str, Any]] = {"server": {}, "own": {"steering": OWN}, "role": {"steering": ROLE},
                          "alone": {"steering": OWN, "deterministic": True}, "bare": {"baseline": True}}  # fmt: skip
                found = await service.score(
                    prompt, more, *(fields[name] for name in names), last=last, baseline=names.index("bare")
                )
                texts.update({f"{name} {more or '-'}": each for name, (each, _) in zip(names, found, strict=True)})

            await score("hello", " world", "server", "own", "alone", "bare")
            await score("hello", None, "server", "bare")
            await score("hello", " again", "own", "bare", last=True)
            await score(CHAT, "well", "role", "bare")

    anyio.run(live)
    return ScoredLog(home / "log", texts)


def test_scores_come_out_again(scored_log: ScoredLog, reproduce: Reproduce, tmp_path: Path) -> None:
    files = {
        " world": {"prompt": "hello", "continuation": " world"},
        "-": {"prompt": "hello"},
        " again": {"prompt": "hello", "continuation": list(b"no")},
        "well": {"messages": CHAT, "continuation": "well"},
    }
    recorded = reproduce(scored_log.folder, scored_log.texts["bare -"])[0] == 0
    for name, generation_id in scored_log.texts.items():
        variant, more = name.split(" ", 1)
        argv = [generation_id]
        if not recorded:
            (tmp_path / "input.json").write_text(json.dumps(files[more]))
            argv += ["--prompt-file", str(tmp_path / "input.json")]
        code, (view,) = reproduce(scored_log.folder, *argv)
        if not recorded and more == " again":
            assert (code, view["verdict"]) == (69, "not_comparable"), "it was another continuation"
            continue
        assert (code, view["verdict"], view["reason"]) == (0, "identical", None), name
        assert (view["digest_agrees"], view["positions_agree"]) == (True, True), name
        assert view["prompt_from"] == ("log" if recorded else "file")
        assert view["score"]["apart"] < 1e-5
        assert (view["scores"] is None) is (variant == "bare")
        if variant != "bare":
            assert view["score"]["here"]["kl_from_baseline"] > 1e-4
            assert view["scores"]["largest"] >= view["scores"]["mean"] > 0


def test_in_words(scored_log: ScoredLog, command: Callable[..., Ran]) -> None:
    explained = command("log", "explain", scored_log.texts["own  world"], "--data-dir", str(scored_log.folder))
    assert "score, requested by me" in explained.out
    assert "score        6 tokens counted" in explained.out
    ran = command("log", "reproduce", scored_log.texts["own  world"], "--data-dir", str(scored_log.folder))
    if ran.code == 0:
        first, score, *_ = ran.out.splitlines()
        assert first == f"{scored_log.texts['own  world']}: identical, same scores"
        assert score.startswith("  score      -")


def test_a_forged_score(scored_log: ScoredLog, reproduce: Reproduce, tmp_path: Path) -> None:
    name = scored_log.texts["own -" if "own -" in scored_log.texts else "server -"]

    def better(data: View) -> None:
        if data.get("score"):
            data["score"]["sum_logprob"] += 1.0

    argv = [name]
    (tmp_path / "input.json").write_text(json.dumps({"prompt": "hello"}))
    argv += ["--prompt-file", str(tmp_path / "input.json")]
    for number, change in enumerate((better, stronger)):
        folder = anyio.run(forged, scored_log.folder, tmp_path / str(number), changing(name, change))
        code, (view,) = reproduce(folder, *argv)
        assert (code, view["verdict"]) == (65, "different"), view
        assert view["score"]["apart"] > 0.01
