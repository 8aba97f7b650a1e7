"""`/api/score`: the log probability of given texts, under several interventions beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from msgspec import Meta, Struct

from ....domain.chats import Tokenization
from ....domain.events import Sampling
from ....domain.messages import AdmitGeneration
from ....domain.refs import ModelFacts
from ....domain.rules import admission as rules
from ....domain.structs import filled
from ....errors import BadRequestError, SAEError
from ....generations import (
    Completed,
    NamedFeature,
    Requested,
    RunningGeneration,
    TokenOptions,
    abandon,
    as_ended,
    ends,
)
from ....limits import in_turns
from ....ports import Scoring
from ....subscriptions.frames import line_of
from ...answers import state_of
from ...answers.lists import LongLists
from ...context import check_intervention, context, device, principal
from ...disconnects import Streamed, followed_by, heard, on_disconnect
from ...operations import operation
from ...problems import problem_view
from ...requests import body_of
from ...types import Answer, AnyRequest
from ..idempotency import Finish, answered_once, asked_under_key, check_unmade
from ..options import SaeExtension, Tag, check_variants
from ..requests import RequestKey
from .detailed import detailed, labels_of
from .inputs import INPUTS, MOST_INPUTS, ContinuedInput, ReadInput, TokenizedBody, read_inputs
from .results import AskedScore, ScoreAnswer, ScoreFault, ScoreResult, result
from .targets import NamedTokens, token_ids_of

MOST_VARIANTS = 16
MOST_NUMBERS = 2**22
"""Log probabilities in an answer."""
SHORT = 1024
"""A result with fewer is made on the event loop."""
NDJSON = "application/x-ndjson"
MOST_POSITIONS = 2**17
"""An answer has details of at most this many positions."""


class ScoreVariant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An intervention to score under, and what its results are called."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    sae: SaeExtension = SaeExtension()

    @property
    def is_baseline(self) -> bool:
        return self.sae.baseline


USUAL = (
    ScoreVariant(name="current"),
    ScoreVariant(name="baseline", sae=SaeExtension(baseline=True)),
)


class ScoreBody(Struct, TokenizedBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Texts to score, and under what."""

    inputs: Annotated[list[ContinuedInput], Meta(min_length=1, max_length=MOST_INPUTS)]
    variants: Annotated[tuple[ScoreVariant, ...], Meta(min_length=1, max_length=MOST_VARIANTS)] = USUAL
    targets: NamedTokens | None = None
    """Tokens to score as the one after each text: ids, or texts of one token."""
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tag: Tag | None = None
    """Of all of these generations on record."""
    add_special_tokens: bool | None = None
    """Special tokens that the tokenizer puts around a text. null: added to a prompt, not to a chat, whose template
    writes its own."""
    prepend_bos: bool | None = None
    """Begin with the BOS token, or do not; null: as the tokenizer, or the template, does."""
    parse_special: bool = True
    """False: a text that spells a control token does not mean it."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        INPUTS.settle(value)

    @property
    def baseline(self) -> int | None:
        """Index of the variant that the others are compared with."""
        return next((at for at, each in enumerate(self.variants) if each.is_baseline), None)

    def check(self) -> None:
        """`BadRequestError` for two variants of one name, and for what a variant cannot have."""
        check_variants([(each.name, each.sae) for each in self.variants], "variants", "where texts are scored")


ERRORS = (
    "model_not_loaded", "not_ready", "sae_not_attached", "sae_not_found", "sae_ambiguous", "feature_out_of_range",
    "conflicting_edits", "precondition_failed", "mailbox_full", "out_of_memory", "read_only", "sae_unsupported",
    "disk_full", "deadline_exceeded", "positions_unknown", "draining", "sae_incompatible", "model_not_found",
    "idempotency_key_reused", "answer_gone", "quota_exceeded",
)  # fmt: skip


@operation("POST", "/api/score",
           "Natural log probabilities of given texts, of the float32 logits under each variant: without `variants`, "
           "`current` (the server's steering) and `baseline`. A `continuation` follows its prompt: a text is tokenized "
           "by itself, without special tokens; its positions count as `generated`, the prompt's as `prompt`, and its "
           "last token is run for `targets` or `top_logprobs` alone. Without one all tokens but the first count. "
           "`targets` are scored as the token after the text. `details` of a variant means what it means in "
           "`/v1/completions`. Each input under each variant is a generation of kind `score` on record; all are "
           "admitted, or none. With `Accept: application/x-ndjson` each result is a line as soon as it is there; a "
           "failure after the first is the last line, `{\"error\": problem}`",
           body=ScoreBody, answers=((200, "application/json"), (200, NDJSON)), returns=ScoreAnswer,
           items=(ScoreResult, ScoreFault), errors=ERRORS, max_body=32 * 1024 * 1024,
           examples={
               "loss of a continuation": {"inputs": [{"prompt": "The capital of France is", "continuation": " Paris"}]},
               "a logit difference": {
                   "inputs": [{"prompt": "I love this"}], "targets": [65, 66],
                   "variants": [{"name": "bare", "sae": {"baseline": True}}],
               },
           },
           keyed=True, users=True, tag="text")  # fmt: skip
async def post_score(request: AnyRequest) -> Answer:
    body: ScoreBody = await body_of(request, ScoreBody)
    body.check()
    for variant in body.variants:
        check_intervention(request, variant.sae)
    in_lines = NDJSON in request.headers.get("accept", "")
    keyed = await asked_under_key(request, streams=in_lines)
    if keyed is not None:

        async def begin(unheard: AnyRequest) -> Finish:
            bare = [each.is_baseline for each in body.variants]
            await check_unmade(unheard, keyed, bare * len(body.inputs))
            asked, texts = await _opened(unheard, body, keyed.key())

            async def finish() -> Answer:
                return await _whole(unheard, asked, texts, await ends(texts), kept=True)

            return finish

        return await answered_once(request, keyed, begin)
    asked, texts = await _opened(request, body)
    if in_lines:
        lines = _lines(asked, texts)
        async with on_disconnect(request, partial(abandon, texts)):
            first = await anext(lines)
        return Streamed(followed_by(first, lines), media_type=NDJSON)
    async with on_disconnect(request, partial(abandon, texts)):
        done = await ends(texts)
    return await _whole(request, asked, texts, done)


async def _whole(
    request: AnyRequest,
    asked: Sequence[AskedScore],
    texts: Sequence[RunningGeneration],
    done: Sequence[Completed],
    *,
    kept: bool = False,
) -> Answer:
    """kept: as one body."""
    lists = LongLists()
    async with heard(request):
        results = await lists.add(list(zip(asked, texts, done, strict=True)), lambda each: result(*each))
    return lists.answer(request, ScoreAnswer(results=results), whole=kept)


async def _opened(
    request: AnyRequest, body: ScoreBody, key: RequestKey | None = None
) -> tuple[list[AskedScore], list[RunningGeneration]]:
    """Each input under each variant, admitted."""
    device(request)  # refuses where there is none
    model, position = rules.model_to_ask(state_of(request))
    targets = await token_ids_of(request, body.targets or (), "targets")
    inputs = await read_inputs(request, body.inputs, body.tokenization)
    top = body.top_logprobs or 0
    told = [detailed(request, each.sae, f"variants[{at}].sae") for at, each in enumerate(body.variants)]
    _refuse_many(inputs, told)
    labels = {} if told == [None] * len(told) else await labels_of(request, ())
    asked: list[AskedScore] = []
    parties: list[list[Requested]] = []
    _refuse_much(inputs, len(body.variants), top)
    async for at, (given, read) in in_turns(enumerate(zip(body.inputs, inputs, strict=True)), 4):
        scoring = Scoring(
            continuation=read.continuation_ids,
            runs_last=bool(read.continuation_ids and (targets or top)),
            targets=targets,
        )
        _check_length(read, scoring, model, at)
        parties.append(
            [
                Requested(
                    _Admission(body, each.sae, read, scoring, position, key),
                    read.prompt.token_ids,
                    TokenOptions(prompt_logprobs=top, detailed=features),
                    scoring=scoring,
                    most=len(read.continuation_ids) + scoring.runs_last,
                )
                for each, features in zip(body.variants, told, strict=True)
            ]
        )
        asked += [
            AskedScore(
                at=at,
                given=given,
                read=read,
                variant=each.name,
                targets=bool(targets),
                top=top,
                labels=labels if each.sae.details else None,
            )
            for each in body.variants
        ]
    opened = await context(request).generations.open_scores(
        parties,
        baseline=body.baseline,
        principal=principal(request),
        command_id=None if key is None else key.command_id,
    )
    return asked, [text for party in opened for text in party]


class _Admission(Struct, frozen=True):
    """Makes the request for a generation id, as `Requested` calls it."""

    body: ScoreBody
    own: SaeExtension
    read: ReadInput
    scoring: Scoring
    model_position: int
    key: RequestKey | None

    def __call__(self, generation_id: str) -> AdmitGeneration:
        how, prompt = self.body.tokenization, self.read.prompt
        run = len(self.scoring.continuation) + self.scoring.runs_last
        return filled(
            AdmitGeneration,
            self.own,
            generation_id=generation_id,
            kind="score",
            tokens_prompt=len(prompt.token_ids),
            sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=run, seed=0),
            runs_last=self.scoring.runs_last,
            turns=prompt.turns,
            tag=self.body.tag,
            tokenization=None if how == Tokenization() else how.recorded,
            model_position=self.model_position,
            request_salt=None if self.key is None else self.key.salt,
            request_sha256=None if self.key is None else self.key.sha256,
        )


def _refuse_many(inputs: Sequence[ReadInput], told: Sequence[Sequence[NamedFeature] | None]) -> None:
    """`BadRequestError` for details of more positions than an answer may have."""
    variants = [at for at, each in enumerate(told) if each is not None]
    positions = len(variants) * sum(len(each.token_ids) for each in inputs)
    if positions > MOST_POSITIONS:
        param = f"variants[{variants[0]}].sae.details"
        raise BadRequestError(
            f"{param}: {positions} positions would be told of, at most {MOST_POSITIONS} are; send fewer inputs",
            param=param,
        )


def _refuse_much(inputs: Sequence[ReadInput], variants: int, top: int) -> None:
    """`BadRequestError` for more than an answer is to hold."""
    tokens = sum(len(each.prompt.token_ids) + len(each.continuation_ids) for each in inputs) * variants
    if (numbers := tokens * (1 + top)) > MOST_NUMBERS:
        raise BadRequestError(
            f"{tokens} tokens under all variants, with {1 + top} log probabilities each, are {numbers} numbers; at "
            f"most {MOST_NUMBERS} are given in an answer: send several requests"
            f"{', or ask for fewer top_logprobs' if top else ''}",
            param="inputs",
        )


def _check_length(read: ReadInput, scoring: Scoring, model: ModelFacts, at: int) -> None:
    more = len(scoring.continuation)
    run = len(read.prompt.token_ids) + more - (1 if more and not scoring.runs_last else 0)
    most = min(model.context_length, model.cache_positions or model.context_length)
    if run > most:
        raise BadRequestError(
            f"inputs[{at}]: {run} of its tokens are to be run, of at most {most}",
            param=f"inputs[{at}]",
            tokens=run,
            context_length=model.context_length,
        )


def _line(asked: AskedScore, text: RunningGeneration, done: Completed) -> bytes:
    return line_of(result(asked, text, done)) + b"\n"


async def _lines(asked: Sequence[AskedScore], texts: Sequence[RunningGeneration]) -> AsyncIterator[bytes]:
    """Each result as soon as it is there. The first that fails ends the others."""
    told = False
    try:
        async with aclosing(as_ended(texts)) as coming:
            async for at, done in coming:
                short = len(done.finished.prompt) * (1 + asked[at].top) < SHORT and asked[at].labels is None
                makes = partial(_line, asked[at], texts[at], done)
                line = makes() if short else await asyncio.to_thread(makes)
                told = True
                yield line
    except SAEError as error:
        if not told:
            raise
        yield line_of(ScoreFault(error=problem_view(error))) + b"\n"
