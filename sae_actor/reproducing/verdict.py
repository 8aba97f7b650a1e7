"""`reproduce`: run a generation again and judge its record in the log.

identical        the same tokens; of a text that was scored: the same scores, up to rounding
equivalent       other tokens, and every token of the log is a near-tie here with the one that is chosen
different        one is not: under the recorded intervention, the output is another
not_comparable   its model or SAEs are not here, or the log does not hold enough; with the reason
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, structs
from msgspec.structs import replace

from ..domain.events import GenerationFinished, GenerationStarted
from ..domain.refs import ModelFacts
from ..domain.structs import filled
from ..domain.views.difference import environment_sha256
from ..domain.views.recorded import Recorded
from ..ports import Finished, GenerationRequest, Scoring
from .given import compared, differences, rescored
from .prompts import continuation_of, digest, prompt_of
from .rescoring import TokenChoice, choices, forced, scored
from .schemas import grammar_of
from .testbed import NotComparable, Testbed

View = dict[str, Any]

TOLERANCES = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.5}
"""Type of the model's numbers → logits by which two tokens may be apart and still count as a near-tie: what rounding
does to a logit between batches and machines, with room to spare."""

SAME_SCORE = 1e-4
"""Nats a token by which sums of log probabilities may be apart and still be the same: rounding in float32."""
_NUMERICS = ("device", "dtype", "quantization")
"""Parts of the environment that must match for a difference beyond a near-tie to count."""
_WHOLE = ("stop", "length", "feature")
"""Natural ends: such a generation is run to its end. Others are run as far as they came."""


class Made(Struct, frozen=True, kw_only=True):
    """A request as it was recorded, for the model and the SAEs here."""

    facts: ModelFacts
    request: GenerationRequest
    prompt_from: str


class Ran(Made, frozen=True, kw_only=True):
    """A generation that was run again."""

    again: Finished
    logprobs: list[float]
    """Of its tokens."""


async def reproduce(text: Recorded, bench: Testbed, prompts: Sequence[str] = (), schemas: Sequence[str] = ()) -> View:
    """Run the generation again; returns the verdict and its grounds, as plain values ready for JSON.

    prompts: texts of files that may hold the prompt where the log does not: token ids or chat messages as JSON, or
    the prompt itself. The one is taken whose token ids have the recorded digest. schemas: JSON of files that may hold
    the schema that it had to follow.
    """
    view: View = {"generation_id": text.generation_id, "position": text.began.position, "verdict": "not_comparable"}
    view["reason"] = None
    try:
        started, finished = _both(text)
        view["digest_agrees"] = text.digest == started.intervention_sha256 == finished.intervention_sha256
        made = await _made(text, started, finished, bench, prompts, schemas=schemas)
        if started.kind == "score":
            view |= await _judged_score(finished, made, text, bench)
        else:
            again, found = await scored(bench, made.request)
            ran = Ran(**structs.asdict(made), again=again, logprobs=found)
            view |= await _judged(started, finished, ran, text, bench)
    except NotComparable as why:
        view["reason"] = str(why)
    return view


def _both(text: Recorded) -> tuple[GenerationStarted, GenerationFinished]:
    started, finished = text.started, text.finished
    if started is None:
        raise NotComparable("the payload of its beginning was erased, or is of a later version")
    if finished is None:
        raise NotComparable("no end of it is on record, or its payload was erased")
    if not finished.output_sha256:
        raise NotComparable(f"its tokens are not on record; it ended with {finished.finish_reason}")
    return started, finished


async def _made(
    text: Recorded,
    started: GenerationStarted,
    finished: GenerationFinished,
    bench: Testbed,
    prompts: Sequence[str],
    *,
    schemas: Sequence[str],
) -> Made:
    if finished.prompt_token_ids is None and not prompts and finished.left_out is not None:
        raise NotComparable(f"its prompt is not in the log ({finished.left_out.detail}); give it with --prompt-file")
    if finished.prompt_token_ids is None and not prompts:
        raise NotComparable("its prompt was not recorded ([audit] record_text); give it with --prompt-file")
    whole = finished.finish_reason in _WHOLE or started.kind == "score"
    most = started.sampling.max_tokens if whole else _count(finished)
    facts = await bench.model(text.known)
    prompt, prompt_from = await prompt_of(started, finished, bench, prompts)
    stop = started.stop_when
    places = await bench.place(started.intervention + (() if stop is None else (stop.sae,)), text.known)
    if stop is not None:
        stop = replace(stop, sae=replace(stop.sae, attach_position=places[stop.sae.attach_position]))
    request = filled(
        GenerationRequest,
        started,
        token_ids=prompt,
        sampling=replace(started.sampling, max_tokens=most),
        grammar=await grammar_of(started.sampling.response_format, schemas, bench.engine),
        intervention=tuple(replace(sae, attach_position=places[sae.attach_position]) for sae in started.intervention),
        stop_when=stop,
        watched=(),
    )
    if started.kind == "score":
        more = await continuation_of(started, finished, bench, prompts)
        scoring = Scoring(continuation=more, runs_last=started.runs_last)
        request = replace(request, scoring=scoring, prompt_logprobs=0)
    return Made(facts=facts, request=request, prompt_from=prompt_from)


async def _judged_score(finished: GenerationFinished, made: Made, text: Recorded, bench: Testbed) -> View:
    if finished.score is None:
        raise NotComparable(f"it was not scored to its end: {finished.finish_reason}")
    again, bare = await rescored(bench, made.request)
    told = _grounds(text, finished, made, again)
    apart = compared(finished.score, again)
    told |= {
        "tokens": {"logged": len(again.token_ids), "here": len(again.token_ids), "same": True},
        "score": apart,
        "scores": differences(again, bare),
    }
    if apart["apart"] <= SAME_SCORE:
        return {**told, "verdict": "identical"}
    return {**told, **_beyond(told["environment"], near=apart["apart"] <= told["tolerance"])}


def _grounds(text: Recorded, finished: GenerationFinished, made: Made, again: Finished) -> View:
    """What a verdict is based on, besides tokens and scores."""
    state = text.known.state.model
    assert state is not None
    assert state.facts is not None
    widest = max(TOLERANCES.values())
    # Matrices in int8 round what they read to one of 255 numbers.
    tolerance = widest if made.facts.quantization == "int8" else TOLERANCES.get(made.facts.dtype, widest)
    return {
        "tolerance": tolerance,
        "environment": _environment(state.facts.environment, made.facts.environment),
        "prompt_from": made.prompt_from,
        "finish_reason": {"logged": finished.finish_reason, "here": again.reason},
        "positions_agree": _positions_agree(finished, again),
    }


async def _judged(
    started: GenerationStarted, finished: GenerationFinished, ran: Ran, text: Recorded, bench: Testbed
) -> View:
    again = ran.again.token_ids
    same = digest(finished, again) == finished.output_sha256
    logged = again if same else finished.output_token_ids
    view = _grounds(text, finished, ran, ran.again)
    view["tokens"] = {"logged": None if logged is None else len(logged), "here": len(again), "same": same}
    environment, tolerance = view["environment"], view["tolerance"]
    if logged is None:
        view["reason"] = "its tokens were not recorded; only a difference can be shown"
        # In float32 the same environment promises the same tokens.
        if environment["same"] and ran.facts.dtype == "float32":
            view["verdict"] = "different"
        return view
    if not same and digest(finished, logged) != finished.output_sha256:
        raise NotComparable("the recorded tokens do not match the recorded digest")
    found, others = (ran.logprobs, []) if same else await choices(bench, ran.request, logged, ran.facts)
    view["scores"] = await _scores(started, ran, logged, found, bench)
    if same:
        return {**view, "verdict": "identical"}
    view["first_difference"] = _first_difference(logged, again, others)
    view["choices"] = [each._asdict() for each in others]
    cut = not others and view["first_difference"]["index"] >= min(len(logged), len(again))
    return {**view, **_verdict(others, tolerance, environment, cut=cut)}


def _positions_agree(finished: GenerationFinished, again: Finished) -> bool | None:
    """None: the generation was cut off and its edited positions are unknown."""
    if finished.receipt is None:
        return None
    return (again.edited, again.excluded) == (finished.edited, finished.excluded)


def _verdict(others: Sequence[TokenChoice], tolerance: float, environment: View, *, cut: bool) -> View:
    """`cut`: one of the two goes on where the other ends, and they are the same up to there."""
    return _beyond(environment, near=not cut and all(each.gap <= tolerance for each in others))


def _beyond(environment: View, *, near: bool) -> View:
    """The verdict on what is not the same."""
    if near:
        return {"verdict": "equivalent"}
    decisive = [name for name in environment["differs"] if name in _NUMERICS]
    if decisive:
        return {"reason": f"this machine is of another kind (other {', '.join(decisive)})"}
    return {"verdict": "different"}


def _first_difference(logged: Sequence[int], again: Sequence[int], others: Sequence[TokenChoice]) -> View:
    """At the first token that differs: both, and how far they are apart."""
    pairs = zip(logged, again, strict=False)
    index = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(logged), len(again)))
    gap = next((each.gap for each in others if each.at == index), None)
    return {"index": index, "logged": _at(logged, index), "here": _at(again, index), "gap": gap}


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None


async def _scores(
    started: GenerationStarted, ran: Ran, logged: Sequence[int], found: Sequence[float], bench: Testbed
) -> View | None:
    """Log probabilities of the logged tokens under the logged intervention against those under none."""
    if not logged or not any(sae.changes_text for sae in started.intervention):
        return None
    without = await forced(bench, replace(ran.request, intervention=(), turns=()), logged)
    apart = [abs(one - other) for one, other in zip(found, without, strict=True)]
    return {"largest": max(apart), "mean": sum(apart) / len(apart)}


# — what the log says, and what is here —


def _count(finished: GenerationFinished) -> int:
    """Tokens of a generation that was ended from outside."""
    if finished.output_token_ids is not None:
        count = len(finished.output_token_ids)
    elif finished.receipt is not None:
        count = finished.receipt.tokens_generated
    else:
        raise NotComparable("how many tokens it had is not on record")
    if count == 0:
        raise NotComparable("it ended before it had a token")
    return count


def _environment(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> View:
    names = recorded.keys() | here.keys()
    if recorded.get("model_files") == here.get("model_files"):
        names -= {"model_commit"}  # the same files, under another path
    differs = sorted(name for name in names if recorded.get(name) != here.get(name))
    return {
        "same": not differs,
        "differs": differs,
        "recorded_sha256": environment_sha256(recorded),
        "here_sha256": environment_sha256(here),
    }
