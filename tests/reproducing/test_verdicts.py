"""`log reproduce` on texts of a tiny random model: every verdict, from logs that are true, forged, or short."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from sae_actor.domain.commands import Attach, Download
from sae_actor.domain.weights import sae_id_of
from sae_actor.eventlog import SqliteLog
from sae_actor.generations.records import token_digest
from sae_actor.reproducing import verdict
from tests.cli.conftest import Ran
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.fakes.hub_server import HubServer
from tests.reproducing.conftest import CHAT, Log, Reproduce
from tests.reproducing.making import GREEDY, SAMPLED, View, changing, edit, forged, recording, stronger


def test_every_text_comes_out_again(log: Log, reproduce: Reproduce) -> None:
    code, views = reproduce(log.folder, "--all")
    found = {view["generation_id"]: view for view in views}
    assert [view["position"] for view in views] == sorted(view["position"] for view in views)
    assert {name: found[each]["verdict"] for name, each in log.texts.items()} == dict.fromkeys(log.texts, "identical")
    assert code == 0
    for name, generation_id in log.texts.items():
        view = found[generation_id]
        assert view["reason"] is None
        assert (view["digest_agrees"], view["positions_agree"], view["prompt_from"]) == (True, True, "log")
        assert view["tokens"]["same"] is True
        assert view["environment"]["same"] is True, view["environment"]
        unsteered = name in ("nothing attached", "nothing steered", "baseline")
        assert (view["scores"] is None) is unsteered
        if not unsteered:
            assert view["scores"]["largest"] >= view["scores"]["mean"] > 0
    ends = {name: found[each]["finish_reason"]["here"] for name, each in log.texts.items()}
    assert ends["stopped by a feature"] == "feature"
    assert ends["greedy"] == "length"


def test_in_words(log: Log, command: Callable[..., Ran]) -> None:
    ran = command("log", "reproduce", log.texts["greedy"], "--data-dir", str(log.folder))
    assert (ran.code, ran.err) == (0, "")
    first, tokens, scores = ran.out.splitlines()
    assert first == f"{log.texts['greedy']}: identical, same tokens"
    assert tokens == "  tokens     6 in the log (length), 6 here (length)"
    assert scores.startswith(
        "  scores     logprobs of the logged tokens, under the intervention and under none: largest"
    )


async def make(log: Log, into: Path, name: str, change: Callable[[View], None]) -> Path:
    return await forged(log.folder, into, changing(log.texts[name], change))


def test_where_a_text_that_was_cut_off_was_steered_is_not_known(
    log: Log, tmp_path: Path, reproduce: Reproduce, command: Callable[..., Ran]
) -> None:
    def cut_off(data: View) -> None:
        if "finish_reason" in data:
            data |= {"finish_reason": "cancelled", "receipt": None, "edited": [], "excluded": []}

    folder = anyio.run(make, log, tmp_path / "forged", "greedy", cut_off)
    code, (view,) = reproduce(folder, log.texts["greedy"])
    assert (code, view["verdict"], view["positions_agree"]) == (0, "identical", None)
    told = command("log", "reproduce", log.texts["greedy"], "--data-dir", str(folder)).out
    assert "  positions  which were written to is not in the log: it was cut off" in told


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_a_history_with_another_steering_is_found_out(
    log: Log, name: str, tmp_path: Path, reproduce: Reproduce, command: Callable[..., Ran]
) -> None:
    folder = anyio.run(make, log, tmp_path / "forged", name, stronger)
    code, (view,) = reproduce(folder, log.texts[name])
    assert (code, view["verdict"], view["reason"]) == (65, "different", None)
    first = view["first_difference"]
    assert first["logged"] != first["here"]
    assert first["gap"] > view["tolerance"]
    assert first["gap"] == next(each["gap"] for each in view["choices"] if each["at"] == first["index"])
    told = command("log", "reproduce", log.texts[name], "--data-dir", str(folder))
    assert f"  difference first at token {first['index']}: token id {first['logged']} in the log" in told.out
    # The other texts of that log are as they were, and the worst verdict decides.
    code, views = reproduce(folder, log.texts[name], log.texts["baseline"])
    assert (code, sorted(view["verdict"] for view in views)) == (65, ["different", "identical"])


def test_near_ties_are_equivalent(
    log: Log, tmp_path: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = anyio.run(make, log, tmp_path / "forged", "sampled", stronger)
    _, (view,) = reproduce(folder, log.texts["sampled"])
    gaps = [each["gap"] for each in view["choices"]]
    monkeypatch.setitem(verdict.TOLERANCES, "float32", max(gaps))
    code, (near,) = reproduce(folder, log.texts["sampled"])
    assert (code, near["verdict"], near["choices"]) == (0, "equivalent", view["choices"])
    monkeypatch.setitem(verdict.TOLERANCES, "float32", max(gaps) * 0.99)
    code, (far,) = reproduce(folder, log.texts["sampled"])
    assert (code, far["verdict"]) == (65, "different")


def _cut(data: View) -> None:
    if "output_token_ids" in data:
        data["output_token_ids"].pop()
        data["output_sha256"] = token_digest(data["salt"], data["output_token_ids"])


def test_a_text_that_goes_on_here_is_different(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    folder = anyio.run(make, log, tmp_path / "forged", "greedy", _cut)
    code, (view,) = reproduce(folder, log.texts["greedy"])
    assert (code, view["verdict"], view["choices"]) == (65, "different", [])
    assert (view["first_difference"]["index"], view["first_difference"]["logged"]) == (5, None)


def _other_digest(data: View) -> None:
    data["intervention_sha256"] = "0" * 64


def _no_tokens(data: View) -> None:
    if "salt" in data:
        data["output_token_ids"] = data["text"] = None


def _no_prompt(data: View) -> None:
    if "salt" in data:
        data["prompt_token_ids"] = None


def _nothing(data: View) -> None:
    _no_tokens(data)
    _no_prompt(data)


def test_a_digest_that_is_not_the_intervention_s(
    log: Log, tmp_path: Path, reproduce: Reproduce, command: Callable[..., Ran]
) -> None:
    folder = anyio.run(make, log, tmp_path / "forged", "greedy", _other_digest)
    _, (view,) = reproduce(folder, log.texts["greedy"])
    assert (view["verdict"], view["digest_agrees"]) == ("identical", False)
    told = command("log", "reproduce", log.texts["greedy"], "--data-dir", str(folder))
    assert told.out.endswith("  digest     the recorded intervention is NOT the one of its digest\n")


def test_from_digests_alone(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    folder = anyio.run(make, log, tmp_path / "bare", "sampled", _nothing)
    code, (view,) = reproduce(folder, log.texts["sampled"])
    assert (code, view["verdict"]) == (69, "not_comparable")
    assert "--prompt-file" in view["reason"]
    prompt = tmp_path / "prompt"
    for text in ("a longer prompt of some words", "a longer prompt of some words\n"):
        prompt.write_text(text)
        code, (view,) = reproduce(folder, log.texts["sampled"], "--prompt-file", str(prompt))
        assert (code, view["verdict"], view["prompt_from"]) == (0, "identical", "file")
        assert view["scores"]["largest"] > 0
    prompt.write_text("a longer prompt of some word")
    code, (view,) = reproduce(folder, log.texts["sampled"], "--prompt-file", str(prompt))
    assert (code, view["verdict"]) == (69, "not_comparable")
    assert "does not match the recorded digest" in view["reason"]


def test_without_the_logged_tokens_other_ones_are_different(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    def both(data: View) -> None:
        stronger(data)
        _no_tokens(data)

    folder = anyio.run(make, log, tmp_path / "forged", "greedy", both)
    code, (view,) = reproduce(folder, log.texts["greedy"])
    assert (code, view["verdict"], view["tokens"]["logged"]) == (65, "different", None)
    assert view["reason"].startswith("its tokens were not recorded")


def test_a_prompt_file_of_ids_and_of_messages(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    folder = anyio.run(make, log, tmp_path / "bare", "chat by role", _no_prompt)
    for written in (CHAT, _ids(log, "chat by role")):
        (tmp_path / "prompt.json").write_text(json.dumps(written))
        code, (view,) = reproduce(folder, log.texts["chat by role"], "--prompt-file", str(tmp_path / "prompt.json"))
        assert (code, view["verdict"]) == (0, "identical")


def test_a_prompt_file_is_read_as_the_request_said(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    ids = _ids(log, "read as text")
    assert (ids[0], len(ids), list(ids).count(256)) == (256, 1 + len("<|end|>hello"), 1)
    folder = anyio.run(make, log, tmp_path / "bare", "read as text", _no_prompt)
    (tmp_path / "prompt").write_text("<|end|>hello")
    code, (view,) = reproduce(folder, log.texts["read as text"], "--prompt-file", str(tmp_path / "prompt"))
    assert (code, view["verdict"], view["prompt_from"]) == (0, "identical", "file")


def _ids(log: Log, name: str) -> Sequence[int]:
    found: list[Sequence[int]] = []

    async def read() -> None:
        opened = await SqliteLog.open(log.folder, read_only=True)
        for event in await opened.read(0, 10_000, ["GenerationFinished"]):
            data = json.loads(bytes(event.data))
            if data["generation_id"] == log.texts[name]:
                found.append(data["prompt_token_ids"])
        await opened.close()

    anyio.run(read)
    return found[0]


def test_what_came_from_a_hub_is_found_in_the_data_folder(tmp_path: Path, reproduce: Reproduce) -> None:
    """By the commit that was attached, also when the branch has moved and was fetched anew beside it."""
    model = save_tiny_model(tmp_path / "model")
    made: list[str] = []

    def published(seed: int) -> dict[str, bytes]:
        folder = save_tiny_sae(tmp_path / f"sae-{seed}", seed=seed)
        return {f"tiny/{path.name}": path.read_bytes() for path in folder.iterdir()}

    async def live(hub: HubServer) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        async with recording(tmp_path / "log", model, environment=environment) as service:
            sae_id = sae_id_of("org/saes", "tiny", "main")
            hub.publish("org/saes", published(1))
            await service.do(Download("org/saes", path="tiny"))
            await service.do(Attach(sae_id))
            await service.steer(sae_id, edit(3, 30.0))
            made.append((await service.say())[0])
            hub.publish("org/saes", published(2))
            await service.do(Download("org/saes", path="tiny", force=True))
            made.append((await service.say())[0])
            await service.do(Attach(sae_id, replace=True))
            made.append((await service.say())[0])

    with HubServer() as hub:
        anyio.run(live, hub)
    code, views = reproduce(tmp_path / "log", *made)
    assert (code, [view["verdict"] for view in views]) == (0, ["identical"] * 3)
    old = hashlib.sha256((tmp_path / "sae-1" / "sae_weights.safetensors").read_bytes()).hexdigest()
    next((tmp_path / "log" / "hub").rglob(old)).unlink()
    code, views = reproduce(tmp_path / "log", *made)
    assert (code, [view["verdict"] for view in views]) == (69, ["not_comparable"] * 2 + ["identical"])


def test_bfloat16_under_load(tmp_path: Path, reproduce: Reproduce) -> None:
    """Rounding may flip near-ties with the batch; a history with another steering is found out all the same."""
    model, sae = save_tiny_model(tmp_path / "model"), save_tiny_sae(tmp_path / "sae")
    made: list[str] = []

    async def live() -> None:
        async with recording(tmp_path / "log", model, dtype="bfloat16") as service:
            await service.steer(await service.attach(sae), edit(3, 30.0))

            async def say(number: int) -> None:
                sampling = replace(SAMPLED if number % 2 else GREEDY, seed=number, max_tokens=12)
                made.append((await service.say(f"number {number}", sampling))[0])

            async with anyio.create_task_group() as together:
                for number in range(12):
                    together.start_soon(say, number)

    anyio.run(live)
    code, views = reproduce(tmp_path / "log", "--all")
    assert code == 0
    assert {view["verdict"] for view in views} <= {"identical", "equivalent"}
    assert {view["tolerance"] for view in views} == {verdict.TOLERANCES["bfloat16"]}
    folder = anyio.run(forged, tmp_path / "log", tmp_path / "forged", changing(made[0], stronger))
    code, (view,) = reproduce(folder, made[0])
    assert (code, view["verdict"]) == (65, "different")
