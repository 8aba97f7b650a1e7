"""The wire of the client: one connection pool, JSON both ways, problems raised as their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import httpx

from ..config import is_loopback
from ..errors import BY_CODE, InternalError, SAEError, from_code

Answer: TypeAlias = dict[str, Any]
Features: TypeAlias = Mapping[int, float] | Sequence[Mapping[str, Any]]


class UnreachableError(SAEError):
    """No answer from the service: not running, another address, or gone in the middle."""

    code, status, title = "unreachable", 503, "The service is not reachable"


class Wire:
    """Requests to one service. Every method raises the errors of `errors`, or `UnreachableError`."""

    def __init__(self, url: str, token: str | None, timeout: float, transport: httpx.BaseTransport | None) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"not an http address: {url}")
        self.url = str(parsed).rstrip("/")
        self.timeout = timeout
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
            transport=transport,
            trust_env=not is_loopback(parsed.host),  # a proxy of the environment cannot reach this machine's loopback
            # SSL_CERT_FILE of the environment counts on loopback all the same.
            verify=httpx.create_ssl_context() if parsed.scheme == "https" else True,
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Answer | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0,
        allowed: tuple[int, ...] = (),
    ) -> tuple[int, Any]:
        """Status and JSON of the answer. `wait`: seconds the service may wait, on top of the timeout; `allowed`:
        error statuses that are returned as answers. Query values of None are left out."""
        with self._reaching():
            response = self._http.request(
                method, path, json=body, params=_given(query), headers=headers, timeout=self.timeout + wait
            )
        if response.status_code >= 400 and response.status_code not in allowed:
            raise error_of(response)
        try:
            return response.status_code, response.json()
        except ValueError as error:
            raise InternalError(f"{self.url}{path} did not answer with JSON; is it a sae-actor?") from error

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        silence: float,
        body: Answer | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """The bytes of an answer as they come; more than `silence` seconds without any is the end."""
        timeout = httpx.Timeout(self.timeout, read=silence)
        request = self._http.build_request(
            method, path, json=body, params=_given(query), headers=headers, timeout=timeout
        )
        with self._reaching():
            response = self._http.send(request, stream=True)
            try:
                if response.status_code >= 400:
                    response.read()
                    raise error_of(response)
                yield response.iter_bytes()
            finally:
                response.close()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise UnreachableError(f"{self.url} did not answer in time") from error
        except httpx.HTTPError as error:
            raise UnreachableError(f"{self.url}: {error or type(error).__name__}") from error


def error_of(response: httpx.Response) -> SAEError:
    """The error of a problem: problem+json, or the OpenAI shape of `/v1`."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return problem_error(body, response.status_code)
    return InternalError(f"HTTP {response.status_code} without a problem body; is it a sae-actor?")


def problem_error(body: Answer, status: int = 500) -> SAEError:
    """The error of a problem (`code`, `detail`, further fields), of one inside an outcome (`fields` apart), or of
    `{"error": {"code", "message", …}}`. A code that this version does not know is kept in the field `unknown_code`."""
    inner = body.get("error")
    problem = inner if isinstance(inner, dict) else body
    code = str(problem.get("code") or "internal")
    detail = str(problem.get("detail") or problem.get("message") or f"HTTP {status}")
    known = {"type", "title", "status", "detail", "code", "message", "fields"}
    fields = {key: value for key, value in problem.items() if key not in known} | (problem.get("fields") or {})
    if code not in BY_CODE:
        fields["unknown_code"] = code
    return from_code(code, detail, **fields)


def _given(query: Mapping[str, Any] | None) -> Answer:
    return {key: value for key, value in (query or {}).items() if value is not None}


def edits_of(features: Features, exclude: Sequence[str]) -> tuple[Answer, ...]:
    """Edits as they are sent; a mapping is of features to strengths."""
    if isinstance(features, Mapping):
        features = [{"feature": feature, "strength": strength} for feature, strength in features.items()]
    return tuple({"exclude": tuple(exclude), **edit} for edit in features)
