"""`log reproduce`: generations run again from the log, each with a verdict."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from ..errors import LogDamagedError, NotFoundError
from ..eventlog import verify_folder
from ..ports import follow
from ..reproducing import Recorded, Recordings, Testbed, reproduce
from . import exit_codes
from .render.answers import plain
from .sources.folder import sound_events

View = dict[str, Any]

_EXITS = {
    "identical": exit_codes.OK,
    "equivalent": exit_codes.OK,
    "different": exit_codes.DATA,
    "not_comparable": exit_codes.UNAVAILABLE,
}
_WORST = (exit_codes.DATA, exit_codes.UNAVAILABLE, exit_codes.OK)
_VERDICTS = {
    "identical": "same tokens",
    "equivalent": "other tokens, but only at near-ties",
    "different": "other tokens",
    "not_comparable": "unknown",
}


async def run(folder: Path, arguments: argparse.Namespace) -> int:
    """Each generation's verdict as soon as it is known; the worst decides the exit code.

    Raises `NotFoundError` for a generation that is not in the log, and `LogDamagedError` if the sound part of the log
    does not hold all that was requested.
    """
    texts = await _recorded(folder, arguments)
    prompts, schemas = (
        [] if file is None else [_read(file)] for file in (arguments.prompt_file, arguments.schema_file)
    )
    worst = exit_codes.OK
    bench = Testbed(folder, arguments.model, arguments.sae)
    async with aclosing(_views(bench, texts, prompts, schemas)) as views:
        async for view in views:
            shown = msgspec.json.encode(view).decode() if arguments.json else verdict(view)
            print(shown, flush=True)
            worst = min(worst, _EXITS[view["verdict"]], key=_WORST.index)
    return worst


async def _recorded(folder: Path, arguments: argparse.Namespace) -> Sequence[Recorded]:
    verification = await verify_folder(folder)
    wanted = None if arguments.all else tuple(dict.fromkeys(arguments.generation_id))
    found = Recordings(wanted)
    await follow(sound_events(folder, verification), found)
    if not verification.ok and not found.complete:
        raise LogDamagedError(verification.detail or "the log does not verify", first_bad=verification.first_bad)
    texts = {text.generation_id: text for _, text in sorted(found.found.items()) if text.generation_id is not None}
    missing = [each for each in wanted or () if each not in texts]
    if missing:
        raise NotFoundError(f"the log has no generation {missing[0]}, or the payloads of its events were erased")
    return [*texts.values()]


async def _views(
    bench: Testbed, texts: Sequence[Recorded], prompts: Sequence[str], schemas: Sequence[str]
) -> AsyncGenerator[View, None]:
    try:
        for text in texts:
            yield await reproduce(text, bench, prompts, schemas)
    finally:
        await bench.close()


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NotFoundError(f"{path}: not text in UTF-8") from None


def verdict(view: View) -> str:
    """The result of `reproducing.reproduce`, as text for a person."""
    reason = f": {view['reason']}" if view["reason"] else ""
    meaning = _VERDICTS[view["verdict"]]
    if "score" in view:
        meaning = meaning.replace("tokens", "scores")
    lines = [f"{view['generation_id']}: {view['verdict']}, {meaning}{reason}"]
    if "tokens" in view:
        lines += [*_tokens(view), *_scores(view), *_environment(view)]
    if view.get("digest_agrees") is False:
        lines.append("  digest     the recorded intervention is NOT the one of its digest")
    return plain("\n".join(lines))


def _tokens(view: View) -> Iterator[str]:
    tokens, ends, score = view["tokens"], view["finish_reason"], view.get("score")
    if score is None:
        logged = "not recorded" if tokens["logged"] is None else tokens["logged"]
        yield f"  tokens     {logged} in the log ({ends['logged']}), {tokens['here']} here ({ends['here']})"
    else:
        sums = [f"{score[side]['sum_logprob']:.6g}" for side in ("logged", "here")]
        yield f"  score      {sums[0]} in the log, {sums[1]} here, over {score['here']['counted']} tokens"
    first = view.get("first_difference")
    if first is not None:
        gap = "" if first["gap"] is None else f", {first['gap']:.3g} logits apart"
        both = f"{_token(first['logged'])} in the log, {_token(first['here'])} here"
        yield f"  difference first at token {first['index']}: {both}{gap}"
        gaps = [each["gap"] for each in view["choices"]]
        near = f"a near-tie is at most {view['tolerance']:g}"
        if gaps:
            missed = f"{len(gaps)} logged tokens were not the ones chosen here"
            yield f"             {missed}, by up to {max(gaps):.3g} logits; {near}"
    if view["positions_agree"] is None:
        yield "  positions  which were written to is not in the log: it was cut off before that was known"
    elif not view["positions_agree"] and tokens["same"]:
        yield "  positions  the edited or excluded positions differ from those in the log"


def _token(token: int | None) -> str:
    return "the end" if token is None else f"token id {token}"


def _scores(view: View) -> Iterator[str]:
    scores = view.get("scores")
    if scores is not None:
        apart = f"largest difference {scores['largest']:.3g}, mean {scores['mean']:.3g}"
        yield f"  scores     logprobs of the logged tokens, under the intervention and under none: {apart}"


def _environment(view: View) -> Iterator[str]:
    if not view["environment"]["same"]:
        yield f"  machine    differs from the log's in {', '.join(view['environment']['differs'])}"
