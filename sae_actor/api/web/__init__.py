"""The page at `/`: three static files, no build step, no foreign host."""

from __future__ import annotations

from importlib.resources import files

from litestar import Response

from ..routes import Answer, AnyRequest, operation

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _file(name: str, media_type: str) -> Answer:
    return Response(content=files(__package__).joinpath(name).read_bytes(), media_type=media_type, headers=_HEADERS)


@operation("GET", "/", "The page", answers=((200, "text/html"),), tag="page")
async def get_page(request: AnyRequest) -> Answer:  # noqa: ARG001 - every handler has this shape
    return _file("index.html", "text/html")


@operation("GET", "/page.js", "The page's script", answers=((200, "text/javascript"),), tag="page")
async def get_script(request: AnyRequest) -> Answer:  # noqa: ARG001
    return _file("page.js", "text/javascript")


@operation("GET", "/page.css", "The page's style", answers=((200, "text/css"),), tag="page")
async def get_style(request: AnyRequest) -> Answer:  # noqa: ARG001
    return _file("page.css", "text/css")
