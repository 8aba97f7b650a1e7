"""`log reproduce` on texts of a tiny random model: every verdict, from logs that are true, forged, or short."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest
from huggingface_hub import constants
from msgspec.structs import replace

from sae_actor.actor.texts import token_digest
from sae_actor.domain.commands import Attach, Download
from sae_actor.domain.events import GenerationStarted
from sae_actor.domain.messages import RequestedStop
from sae_actor.domain.refs import Span, intervention_sha256, sae_id_of
from sae_actor.eventlog import SqliteLog, redact
from sae_actor.reproducing import verdict
from tests.cli.conftest import Ran, bare_environment, command
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.fakes.hub_server import HubServer
from tests.reproducing.making import GREEDY, SAMPLED, edit, forged, recording

__all__ = ["bare_environment", "command"]

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
View = dict[str, Any]


class Log(NamedTuple):
    """A log of texts, and the files that they ran on."""

    folder: Path
    model: Path
    sae: Path
    texts: dict[str, str]
    """What is told of each → its generation id."""
    sae_id: str


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """One life of a service with texts under everything that an intervention can be."""
    home = tmp_path_factory.mktemp("reproduced")
    model, sae = save_tiny_model(home / "model"), save_tiny_sae(home / "sae")
    other = save_tiny_sae(home / "other", hook="blocks.2.hook_resid_pre", seed=3)
    texts: dict[str, str] = {}

    async def live() -> str:
        async with recording(home / "log", model) as service:

            async def say(name: str, *arguments: Any, **asked: Any) -> None:
                texts[name], _ = await service.say(*arguments, **asked)

            await say("nothing attached")
            sae_id = await service.attach(sae)
            await say("nothing steered", "hello", SAMPLED)
            await service.steer(sae_id, edit(3, 30.0), edit(5, 0.0, method="scale", exclude=("sink",)))
            await say("greedy")
            await say("sampled", "a longer prompt of some words", SAMPLED)
            await say("baseline", baseline=True)
            own = (edit(7, -20.0, positions="generated"), edit(2, 4.0, method="set", positions=Span(from_=1, to=3)))
            await say("own steering", "hello", replace(SAMPLED, top_p=1.0, temperature=1.3), steering=own)
            role = (edit(4, 25.0, positions=Span(role="user"), exclude=("template",)),)
            await say("chat by role", CHAT, steering=role)
            await say("stopped by a feature", "hello", stop_when=RequestedStop(feature=0, above=-1.0))
            await say("stop text", "hello", replace(SAMPLED, stop=("e", "a", "t", "\n", " ")))
            await say("deterministic", "hello", SAMPLED, deterministic=True)
            second = await service.attach(other)
            await service.steer(second, edit(1, 12.0, method="project"))
            await say("two SAEs", "hello", SAMPLED)
            await service.detach(sae_id)
            await say("after a detach", "hello", SAMPLED)
            await service.detach(second)
            await service.attach(sae, layer=2, mode="reconstruct")
            await say("reconstructed elsewhere")
            return sae_id

    sae_id = anyio.run(live)
    return Log(home / "log", model, sae, texts, sae_id)


Reproduce = Callable[..., tuple[int, list[View]]]


@pytest.fixture
def reproduce(command: Callable[..., Ran]) -> Reproduce:
    def run(folder: Path, *argv: str) -> tuple[int, list[View]]:
        ran = command("log", "reproduce", *argv, "--json", "--data-dir", str(folder))
        assert ran.err == ""
        return ran.code, [json.loads(line) for line in ran.out.splitlines()]

    return run


def changing(name: str, change: Callable[[View], None]) -> Callable[[str, View], None]:
    """Alter the payloads of one text."""

    def altered(_: str, data: View) -> None:
        if data.get("generation_id") == name:
            change(data)

    return altered


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


def stronger(data: View) -> None:
    """A history in which the text was steered otherwise, digests and all."""
    if "intervention" in data:
        data["intervention"][0]["steering"][0]["strength"] = -30.0
        started = msgspec.convert(data, GenerationStarted)
        data["intervention_sha256"] = intervention_sha256(started.intervention)


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
    assert "not the one that was recorded as a digest" in view["reason"]


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


# — what cannot be compared —


def reason(reproduce: Reproduce, folder: Path, name: str) -> str:
    code, (view,) = reproduce(folder, name)
    assert (code, view["verdict"]) == (69, "not_comparable")
    assert "tokens" not in view
    return str(view["reason"])


def test_weights_that_changed_or_are_gone(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    kept = shutil.copytree(log.sae, tmp_path / "kept")
    weights = log.sae / "sae_weights.safetensors"
    try:
        save_tiny_sae(log.sae, seed=9)
        assert log.sae_id in reason(reproduce, log.folder, log.texts["greedy"])
        assert reproduce(log.folder, log.texts["nothing attached"])[0] == 0
        weights.unlink()
        assert log.sae_id in reason(reproduce, log.folder, log.texts["greedy"])
    finally:
        shutil.copytree(kept, log.sae, dirs_exist_ok=True)
    assert reproduce(log.folder, log.texts["greedy"])[0] == 0


def test_a_model_that_changed_or_is_gone(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    kept = log.model.rename(tmp_path / "kept")
    try:
        assert str(log.model) in reason(reproduce, log.folder, log.texts["greedy"])
        save_tiny_model(log.model, seed=4)
        told = reason(reproduce, log.folder, log.texts["greedy"])
        assert told.endswith("not those that it was loaded from: model.safetensors")
        code, views = reproduce(log.folder, "--all")
        assert (code, {view["verdict"] for view in views}) == (69, {"not_comparable"})
    finally:
        shutil.rmtree(log.model, ignore_errors=True)
        kept.rename(log.model)


def test_a_model_of_the_hub_s_cache(
    log: Log, tmp_path: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by its commit, wherever the branch is now; and not fetched where it is not there."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--org--tiny"
    shutil.copytree(log.model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    made: list[str] = []

    async def live() -> None:
        async with recording(tmp_path / "log", Path("org/tiny")) as service:
            made.append((await service.say())[0])

    anyio.run(live)
    (repository / "refs" / "main").write_text("f" * 40)
    code, (view,) = reproduce(tmp_path / "log", *made)
    assert (code, view["verdict"]) == (0, "identical")
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    told = reason(reproduce, tmp_path / "log", made[0])
    assert told == f"the model org/tiny: commit {commit} is not in the hub's cache on this machine"


def test_another_kind_of_machine(log: Log, tmp_path: Path, reproduce: Reproduce) -> None:
    """What was made on another device and differs by more than a near-tie says nothing; the same tokens do."""

    def on_another(kind: str, data: View) -> None:
        if kind == "ModelLoaded":
            data["model"]["device"] = "cuda:7"
            data["model"]["environment"]["device"] = "cuda:7"
        if data.get("generation_id") == log.texts["greedy"]:
            stronger(data)

    folder = anyio.run(forged, log.folder, tmp_path / "forged", on_another)
    code, (same, other) = reproduce(folder, log.texts["nothing steered"], log.texts["greedy"])
    assert code == 69
    assert (same["verdict"], same["environment"]["differs"]) == ("identical", ["device"])
    assert (other["verdict"], other["reason"]) == (
        "not_comparable",
        "it is run on another kind of machine here (other device)",
    )


def test_what_the_log_does_not_hold(
    log: Log, tmp_path: Path, reproduce: Reproduce, command: Callable[..., Ran]
) -> None:
    folder = Path(shutil.copytree(log.folder, tmp_path / "log"))
    name = log.texts["greedy"]
    position = next(view["position"] for view in reproduce(log.folder, name)[1])

    async def erase(at: int) -> None:
        await redact(folder, at, "asked for", time="2026-01-01T00:00:00.000000Z")

    anyio.run(erase, position)
    assert reason(reproduce, folder, name).startswith("the payload of its beginning was erased")
    anyio.run(erase, position + 1)
    gone = command("log", "reproduce", name, "--data-dir", str(folder))
    assert (gone.code, gone.out) == (64, "")
    assert command("log", "reproduce", "--data-dir", str(folder)).code == 64
    assert command("log", "reproduce", name, "--all", "--data-dir", str(folder)).code == 64
    assert command("log", "reproduce", "gen-none", "--data-dir", str(folder)).code == 64
    assert command("log", "reproduce", name, "--data-dir", str(tmp_path / "none")).code == 78


def test_while_a_service_holds_the_log(log: Log, command: Callable[..., Ran]) -> None:
    async def held() -> Ran:
        service = await SqliteLog.open(log.folder)
        try:
            return await anyio.to_thread.run_sync(
                lambda: command("log", "reproduce", "--all", "--data-dir", str(log.folder))
            )
        finally:
            await service.close()

    assert anyio.run(held).code == 75


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
