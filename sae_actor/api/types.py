"""Requests and answers of the framework, by short names."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response

AnyRequest = Request[Any, Any, Any]
Answer = Response[Any]
