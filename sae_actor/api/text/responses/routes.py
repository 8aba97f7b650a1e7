"""`/v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ...operations import operation
from ...requests import body_of
from ...types import Answer, AnyRequest
from ..answers import ChatCompletion
from ..idempotency import Made
from ..routes import ANSWERS, KEYED, respond
from .answers import ModelResponse, ResponseEvent, whole
from .events import ResponseFrames
from .requests import ResponsesBody

EXAMPLE: dict[str, Any] = {"model": "default", "input": "Tell me about your day.", "max_output_tokens": 40}


@operation("POST", "/v1/responses",
           "Answer a conversation in OpenAI's newer shape: text in, text out, on record as a chat. Nothing is stored "
           "to be continued: send the whole conversation as `input`",
           body=ResponsesBody, answers=ANSWERS, returns=ModelResponse, items=ResponseEvent, errors=KEYED,
           keyed=True, examples={"streamed": {**EXAMPLE, "stream": True}, "steered": {
               **EXAMPLE, "sae": {"steering": [{"feature": 74, "strength": 100.0}]}}},
           users=True, tag="text")  # fmt: skip
async def responses(request: AnyRequest) -> Answer:
    body: ResponsesBody = await body_of(request, ResponsesBody)

    def shown(made: Sequence[Made]) -> ModelResponse:
        ((reply, done),) = made
        return whole(body, cast("ChatCompletion", reply.whole(done)))

    return await respond(request, body.chat(), "chat", shown, ResponseFrames(body))
