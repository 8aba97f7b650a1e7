"""The page at `/`: static files, no build step, no foreign host. They hold no secret, so a login can begin there.

index.html, page.css, icon.svg    what there is to see
page.js                           what it shows: SAEs, steering, text with and without, events
wire.js                           how it asks: JSON, streamed text, events without a gap
login.js                          who is there: the form for a token, and the way out
schema.html, .js, .css            the description of the API, to be read
"""

from __future__ import annotations

from importlib.resources import files

from litestar import Response

from ..operations import operation
from ..types import Answer, AnyRequest

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cache-control": "no-cache",
}


def _serve(path: str, name: str, media_type: str, summary: str) -> None:
    content = files(__package__).joinpath(name).read_bytes()

    async def get_file(request: AnyRequest) -> Answer:  # noqa: ARG001 - every handler has this shape
        return Response(content=content, media_type=media_type, headers=_HEADERS)

    get_file.__name__ = f"get_{name.replace('.', '_')}"
    operation("GET", path, summary, answers=((200, media_type),), open=True, tag="page")(get_file)


_serve("/", "index.html", "text/html", "The page")
_serve("/page.js", "page.js", "text/javascript", "The page's script")
_serve("/wire.js", "wire.js", "text/javascript", "The page's requests")
_serve("/login.js", "login.js", "text/javascript", "The page's login")
_serve("/page.css", "page.css", "text/css", "The page's style")
_serve("/schema.html", "schema.html", "text/html", "The API, to be read in a browser")
_serve("/schema.js", "schema.js", "text/javascript", "Its script")
_serve("/schema.css", "schema.css", "text/css", "Its style")
_serve("/icon.svg", "icon.svg", "image/svg+xml", "The page's icon")
