"""Login of a browser: a token for a cookie that no script can read, and who the caller is."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from ...config.access import Role
from ...errors import BadRequestError, UnauthorizedError
from ..answers import answer
from ..context import context
from ..guard.identity import MAX_TOKEN, cookie_name, session_ids_of
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest

MAX_LOGIN = 8 * 1024
"""Bytes of a body that anyone may send: the longest token, each character escaped."""


class LoginBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A token as in `Authorization: Bearer`."""

    token: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN)]


class Session(Struct, frozen=True, kw_only=True):
    """Who the caller is (null for somebody unknown), and whether the service asks for tokens."""

    principal: str | None
    role: Role | None
    tokens: bool


@operation("GET", "/api/session", "Who the caller is: `principal` and `role` (null if unknown), and whether "
           "the service requires tokens", returns=Session, open=True, tag="service")  # fmt: skip
async def get_session(request: AnyRequest) -> Answer:
    return _session(request, request.scope.get("caller"))


@operation("POST", "/login", "Log in with a token: the answer sets a cookie for the page's requests",
           body=LoginBody, returns=Session, errors=("too_many_attempts",), open=True, max_body=MAX_LOGIN,
           examples={"a token": {"token": "correct-horse-battery-staple"}}, tag="page")  # fmt: skip
async def post_login(request: AnyRequest) -> Answer:
    known = context(request)
    address = request.client.host if request.client is not None else ""
    known.attempts.check(address)
    body: LoginBody = await body_of(request, LoginBody)
    if not known.access:
        raise BadRequestError("this service does not require a token")
    # Others may have failed while the body came.
    known.attempts.check(address)
    grant = known.access.of(body.token.encode())
    if grant is None:
        known.attempts.failed(address)
        raise UnauthorizedError("the token is not valid")
    _end(request)
    response = _session(request, grant)
    response.headers["set-cookie"] = _cookie(request, known.sessions.begin(grant), int(known.sessions.seconds))
    return response


@operation("POST", "/logout", "End the login of the cookie", returns=Session, open=True, tag="page")
async def post_logout(request: AnyRequest) -> Answer:
    _end(request)
    response = _session(request, None)
    response.headers["set-cookie"] = _cookie(request, "", 0)
    return response


def _end(request: AnyRequest) -> None:
    """Every session that the cookies name: an injected cookie must not keep ours alive."""
    for session_id in session_ids_of(request.scope):
        context(request).sessions.end(session_id)


def _cookie(request: AnyRequest, value: str, seconds: int) -> str:
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    return f"{cookie_name(request.scope)}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _session(request: AnyRequest, caller: Any) -> Answer:
    name, role = (None, None) if caller is None else (caller.name, caller.role)
    return answer(request, Session(principal=name, role=role, tokens=bool(context(request).access)))
