"""Errors as answers: problem+json (RFC 9457), and OpenAI's shape on `/v1`."""

from __future__ import annotations

import logging
from typing import Annotated, NotRequired, TypedDict, cast

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException
from msgspec import Meta

from ..domain.events import Problem
from ..errors import (
    AnswerGoneError,
    BadRequestError,
    InternalError,
    NotFoundError,
    NotReadyError,
    SAEError,
    TooLargeError,
    from_code,
)
from .types import AnyRequest

logger = logging.getLogger(__name__)


class ProblemDetails(TypedDict):
    """Why a request was refused, or failed (RFC 9457); further members say more, such as `sae_d_in`."""

    type: str
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    code: str


class OpenAIFault(TypedDict):
    message: str
    type: str
    param: str | None
    code: str
    generation_id: NotRequired[str]
    """Of an answer that is gone."""
    missing: NotRequired[tuple[str, ...]]
    incompatible: NotRequired[tuple[str, ...]]
    """Of a preset: its SAEs that are not attached, or attached with other weights."""


class OpenAIError(TypedDict):
    """The shape of errors under `/v1`."""

    error: OpenAIFault


def problem_view(error: SAEError) -> ProblemDetails:
    """The members of a problem: the fixed ones win over fields of the same name."""
    fixed: ProblemDetails = {
        "type": f"urn:sae-actor:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    return cast("ProblemDetails", {**error.fields, **fixed})


def recorded_error(problem: Problem) -> SAEError:
    """The error that a recorded problem stands for."""
    return from_code(problem.code, problem.detail, **problem.fields)


def openai_view(error: SAEError) -> OpenAIError:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    fault: OpenAIFault = {
        "message": error.detail,
        "type": kind,
        "param": error.fields.get("param"),
        "code": error.code,
    }
    if isinstance(error, AnswerGoneError) and "generation_id" in error.fields:
        fault["generation_id"] = error.fields["generation_id"]
    if "missing" in error.fields:
        fault["missing"] = error.fields["missing"]
    if "incompatible" in error.fields:
        fault["incompatible"] = error.fields["incompatible"]
    return {"error": fault}


def problem_response(path: str, error: SAEError) -> Response[bytes]:
    """The answer for an error on this path."""
    headers = {"cache-control": "no-store"}
    retry_after = error.fields.get("retry_after")
    if retry_after is not None or error.status in (429, 503):
        headers["retry-after"] = str(max(1, int(retry_after or 1)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    on_v1 = is_openai(path)
    return Response(
        content=msgspec.json.encode(openai_view(error) if on_v1 else problem_view(error)),
        status_code=error.status,
        media_type="application/json" if on_v1 else "application/problem+json",
        headers=headers,
    )


def is_openai(path: str) -> bool:
    """Whether a path is answered in OpenAI's shape."""
    return path.startswith(("/v1/", *OPENAI))


def on_error(request: AnyRequest, error: SAEError) -> Response[bytes]:
    return problem_response(request.scope["path"], error)


def on_http_error(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """The framework's own refusals (no such route, wrong method, too large) in the same shape."""
    mine: SAEError
    if error.status_code == 404:
        mine = _not_found(request)
    elif error.status_code == 413:
        mine = TooLargeError("the body is too large")
    elif error.status_code == 405:
        mine = _MethodNotAllowedError(f"{request.method} is not allowed here")
    elif error.status_code < 500 or error.detail == _LEFT:
        # Nobody receives the second, but it is counted.
        mine = BadRequestError("the request is not valid")
    else:
        mine = InternalError()
    response = problem_response(request.scope["path"], mine)
    for name, value in (error.headers or {}).items():
        response.headers.setdefault(name, value)
    return response


def _not_found(request: AnyRequest) -> NotFoundError:
    """A client whose base URL lacks `/v1`, or has it twice, is shown the right one."""
    path = request.scope["path"].removeprefix("/v1/v1").rstrip("/")
    if not path.startswith(OPENAI):
        return NotFoundError("no such resource")
    right = f"{request.url.scheme}://{request.url.netloc}/v1"
    return NotFoundError(f"no such resource; did you mean {right}{path}? The base URL is {right}", base_url=right)


OPENAI = ("/chat/completions", "/completions", "/models", "/responses")
"""What OpenAI's clients put after the base URL."""
_LEFT = "client disconnected prematurely"
"""The framework reports this as its own fault: a body whose client disconnected."""


class _MethodNotAllowedError(BadRequestError):
    status, title = 405, "Method not allowed"


def on_fault(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A fault of ours: the cause goes to the service's log, not to the client."""
    logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return problem_response(request.scope["path"], InternalError("the request failed; the service's log has the cause"))


def on_no_memory(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The process may not take what this request needs; the next one may be smaller."""
    logger.error("%s %s: no memory: %s", request.method, request.scope["path"], error or "refused by the system")
    return problem_response(request.scope["path"], NotReadyError("not enough memory for this request", retry_after=5))
