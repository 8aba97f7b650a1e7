"""`log reproduce` follows how a text was told to end: stop tokens, end tokens held off or ignored, what is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from msgspec.structs import replace

from sae_actor.domain.chats import Reasoning
from sae_actor.domain.events import Sampling
from tests.engine.tiny import END, save_tiny_model, save_tiny_sae
from tests.reproducing.conftest import Reproduce
from tests.reproducing.making import View, changing, edit, forged, recording, stronger

WILD = Sampling(temperature=1.9, top_p=1.0, max_tokens=110, seed=31)
SPECIAL = ("<|user|>", "<|assistant|>", "<|system|>")
HALF = tuple(range(130))


class Ended(NamedTuple):
    folder: Path
    texts: dict[str, str]
    tokens: dict[str, tuple[int, ...]]
    reasons: dict[str, str]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    home = tmp_path_factory.mktemp("ended")
    model, sae = save_tiny_model(home / "model"), save_tiny_sae(home / "sae")
    texts: dict[str, str] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    reasons: dict[str, str] = {}

    async def live() -> None:
        async with recording(home / "log", model) as service:

            async def say(name: str, sampling: Sampling, **asked: Any) -> None:
                texts[name], done = await service.say("hello", sampling, **asked)
                tokens[name], reasons[name] = done.finished.token_ids, done.finished.reason

            await service.steer(await service.attach(sae), edit(3, 20.0))
            await say("whole", replace(WILD, ignore_eos=True))
            await say("hidden", replace(WILD, ignore_eos=True, stop=SPECIAL, stop_in_hidden=True))
            await say("before", replace(WILD, ignore_eos=True, stop=SPECIAL))
            held = replace(WILD, stop_token_ids=HALF, min_tokens=9)
            await say("held off", held)
            await say("held off, greedy", replace(held, temperature=0.0))
            thinking = Reasoning(format="block", begin="e", end="a")
            await say("thinking", replace(WILD, stop=("b", "<|user|>"), stop_in_hidden=True), reasoning=thinking)

    anyio.run(live)
    return Ended(home / "log", texts, tokens, reasons)


def test_texts_end_where_they_ended(ended: Ended, reproduce: Reproduce) -> None:
    code, views = reproduce(ended.folder, "--all")
    assert code == 0
    found = {view["generation_id"]: view for view in views}
    assert {name: found[each]["verdict"] for name, each in ended.texts.items()} == dict.fromkeys(
        ended.texts, "identical"
    )
    assert all(view["scores"]["largest"] > 0 for view in views), "the logged tokens are scored to the last"
    whole = ended.tokens["whole"]
    assert END in whole[:-1], "the seed is one with an end token"
    assert len(whole) == 110
    first = next(at for at, token in enumerate(whole) if token > END)
    assert (ended.tokens["hidden"], ended.reasons["hidden"]) == (whole[: first + 1], "stop")
    assert (ended.tokens["before"], ended.reasons["before"]) == (whole, "length")
    for name in ("held off", "held off, greedy"):
        assert all(token >= 130 for token in ended.tokens[name][:9])
        assert END not in ended.tokens[name][:9]
    assert ended.tokens["held off"][-1] < 130


def test_a_log_of_before_is_followed_as_it_was(ended: Ended, tmp_path: Path, reproduce: Reproduce) -> None:
    """Its stop strings were looked for in the text alone, and it says nothing of the fields since."""

    def older(data: View) -> None:
        if "sampling" in data:
            for name in ("stop_in_hidden", "min_tokens", "stop_token_ids", "skip_special_tokens"):
                del data["sampling"][name]
            del data["reasoning"]

    async def make(name: str) -> Path:
        return await forged(ended.folder, tmp_path / name, changing(ended.texts[name], older))

    code, (view,) = reproduce(anyio.run(make, "before"), ended.texts["before"])
    assert (code, view["verdict"], view["finish_reason"]["here"]) == (0, "identical", "length")
    code, (view,) = reproduce(anyio.run(make, "hidden"), ended.texts["hidden"])
    assert (code, view["verdict"], view["finish_reason"]["here"]) == (65, "different", "length")


@pytest.mark.parametrize("name", ["held off", "held off, greedy"])
def test_tokens_that_were_held_off_are_none_that_would_be_chosen(
    ended: Ended, name: str, tmp_path: Path, reproduce: Reproduce
) -> None:
    async def make(change: Any, into: str) -> Path:
        return await forged(ended.folder, tmp_path / into, changing(ended.texts[name], change))

    code, (view,) = reproduce(anyio.run(make, stronger, "stronger"), ended.texts[name])
    assert (code, view["verdict"]) == (65, "different")
    assert all(each["here"] >= 130 and each["here"] != END for each in view["choices"] if each["at"] < 9)

    def more(data: View) -> None:
        if "sampling" in data:
            data["sampling"] |= {"min_tokens": 100, "max_tokens": 100}

    code, (view,) = reproduce(anyio.run(make, more, "more"), ended.texts[name])
    if ended.tokens[name][-1] < 130:
        assert (code, view["verdict"], view["choices"][-1]["gap"]) == (65, "different", None)
        assert view["choices"][-1]["at"] == len(ended.tokens[name]) - 1
