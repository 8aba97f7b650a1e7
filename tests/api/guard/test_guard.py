"""Who is let in: every check over the whole table of routes, on real sockets, so that a new route is covered."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from sae_actor.api.guard.checks import READING
from sae_actor.api.guard.headers import HARDENING
from sae_actor.api.operations import OPERATIONS, Operation
from sae_actor.config.access import Grant, digest_of

from ..conftest import Running, serving
from ..raw import Answer, exchange, request

pytestmark = pytest.mark.anyio

OPERATOR, VIEWER = "operator-secret-token", "viewer-secret-token"
GRANTS = (Grant("olga", "operator", digest_of(OPERATOR.encode())), Grant("vera", "viewer", digest_of(VIEWER.encode())))
LISTED = "https://notebook.example:8443"
ROUTES = [(each, re.sub(r"{\w+}", "x", each.path)) for each in OPERATIONS]
Pairs = list[tuple[str, str]]


@pytest.fixture
async def secured() -> AsyncIterator[Running]:
    """Named tokens, one listed origin; the client of the fixture is the operator."""
    async with serving(grants=GRANTS, cors_origins=(LISTED,), bearer=OPERATOR) as running:
        yield running


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


def host(service: Running) -> tuple[str, str]:
    return ("Host", service.url.removeprefix("http://"))


async def ask(service: Running, each: Operation, path: str, headers: Pairs, body: bytes = b"") -> Answer:
    return await exchange(service.url, request(each.method, path, headers, body))


def refused(each: Operation, answer: Answer, status: int, why: str) -> None:
    """The status, as a problem, or in OpenAI's shape on /v1; and hardened."""
    assert answer.status == status, (why, each.method, each.path, answer)
    problem = msgspec.json.decode(answer.body)
    if each.path.startswith("/v1/"):
        assert set(problem["error"]) == {"message", "type", "param", "code"}
    else:
        assert answer.header("content-type") == "application/problem+json"
        assert problem["status"] == status
    hardened(answer)
    if status == 401:
        assert answer.header("www-authenticate") == "Bearer"


def hardened(answer: Answer) -> None:
    for name, _ in HARDENING:
        assert answer.header(name.decode()), (name, answer)


# — pages of others, rebinding, and addresses that hold secrets —

STRANGERS: dict[str, tuple[Pairs, str, int]] = {
    "a rebinding host name": ([("Host", "evil.example")], "", 403),
    "a rebinding host name with our port": ([("Host", "evil.example:PORT")], "", 403),
    "no host": ([], "", 400),
    "two hosts": ([("Host", "127.0.0.1:PORT"), ("Host", "127.0.0.1:PORT")], "", 400),
    "a host that is none": ([("Host", "127.0.0.1:PORT/x")], "", 400),
    "a host with a port that is none": ([("Host", "127.0.0.1:99999")], "", 400),
    "a host with a name before it": ([("Host", "evil.example@127.0.0.1:PORT")], "", 400),
    "an empty host": ([("Host", "")], "", 400),
    "another origin": ([("Host", "127.0.0.1:PORT"), ("Origin", "https://evil.example")], "", 403),
    "our host at another port": ([("Host", "127.0.0.1:PORT"), ("Origin", "http://127.0.0.1:1")], "", 403),
    "a name that begins like ours": ([("Host", "127.0.0.1:PORT"), ("Origin", "http://127.0.0.1:PORT.evil.example")],
                                     "", 403),
    "origin null": ([("Host", "127.0.0.1:PORT"), ("Origin", "null")], "", 403),
    "no origin at all in the header": ([("Host", "127.0.0.1:PORT"), ("Origin", "")], "", 403),
    "two origins": ([("Host", "127.0.0.1:PORT"), ("Origin", "http://127.0.0.1:PORT"), ("Origin", LISTED)], "", 403),
    "an origin that is no address": ([("Host", "127.0.0.1:PORT"), ("Origin", "http://[")], "", 403),
    "another site": ([("Host", "127.0.0.1:PORT"), ("Sec-Fetch-Site", "cross-site")], "", 403),
    "a script of another port": ([("Host", "127.0.0.1:PORT"), ("Sec-Fetch-Site", "same-site"),
                                  ("Sec-Fetch-Mode", "no-cors")], "", 403),
    "a token in the address": ([("Host", "127.0.0.1:PORT")], f"?token={OPERATOR}", 400),
    "a token in the address by escapes": ([("Host", "127.0.0.1:PORT")], "?%74oken=x", 400),
    "a token in the address by escapes in capitals": ([("Host", "127.0.0.1:PORT")], "?a=b&ACCESS%5fTOK%45N", 400),
    "a parameter twice": ([("Host", "127.0.0.1:PORT")], "?after=1&after=1", 400),
    "a parameter twice, once by escapes": ([("Host", "127.0.0.1:PORT")], "?after=1&%61fter=2", 400),
    "parameters without end": ([("Host", "127.0.0.1:PORT")], "?a&b" + "&c" * 500, 400),
    "a token in the address by another name": ([("Host", "127.0.0.1:PORT")], "?after=1&Access_Token=", 400),
}  # fmt: skip


async def test_strangers_are_refused_on_every_route(secured: Running) -> None:
    """Row 70, and the query of row 71: the token they bring is a good one."""
    port = secured.url.rpartition(":")[2]
    for stranger, (given, query, status) in STRANGERS.items():
        headers = [(name, value.replace("PORT", port)) for name, value in given]
        for each, path in ROUTES:
            answer = await ask(secured, each, path + query, [*headers, bearer(OPERATOR)])
            refused(each, answer, status, stranger)
            assert answer.header("access-control-allow-origin") is None
    assert len(await secured.events()) == 1


async def test_an_address_without_a_route_is_no_way_around(secured: Running) -> None:
    for headers, status in (
        ([("Host", "evil.example"), bearer(OPERATOR)], 403),
        ([host(secured)], 401),
        ([host(secured), bearer(OPERATOR)], 404),
    ):
        answer = await exchange(secured.url, request("GET", "/api/nothing", headers))
        assert answer.status == status
        hardened(answer)
    answer = await exchange(secured.url, request("PATCH", "/api/saes", [host(secured), bearer(VIEWER)]))
    assert answer.status == 403
    answer = await exchange(secured.url, request("OPTIONS", "/api/saes", [host(secured)]))
    assert answer.status == 401


async def test_head_is_get_without_its_body(secured: Running) -> None:
    """On every route, to whoever asks: a stream ends at once; where GET is not allowed, HEAD is not."""
    for who in ([], [bearer(VIEWER)]):
        for each, path in ROUTES:
            headers = [host(secured), *who]
            shown = await exchange(secured.url, request("GET", path, headers))
            told = await exchange(secured.url, request("HEAD", path, headers))
            assert (told.status, told.body) == (shown.status, b""), (who, each.path)
            for name in ("content-type", "allow", "www-authenticate", *(["content-length"] * (path != "/metrics"))):
                assert told.header(name) == shown.header(name), (who, each.path)
            hardened(told)
    assert secured.actor.broadcast.readers == 0
    assert 'method="HEAD",route="/health",status="200"' in (await secured.client.get("/metrics")).text


async def test_the_page_of_our_own_and_a_link_to_it_are_let_in(service: Running) -> None:
    for headers in (
        {"origin": service.url, "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
    ):
        assert (await service.client.get("/api/saes", headers=headers)).status_code == 200
    named = service.url.replace("127.0.0.1", "LocalHost")
    assert (await service.client.get("/health", headers={"host": named.removeprefix("http://")})).status_code == 200


# — tokens and roles —

STRANGE_TOKENS: dict[str, Pairs] = {
    "missing": [],
    "empty": [("Authorization", "")],
    "wrong": [bearer("wrong")],
    "nearly right": [bearer(OPERATOR[:-1])],
    "oversized": [bearer("x" * 9000)],
    "right, and much behind it": [bearer(OPERATOR + " " * 2000 + "x")],
    "another scheme": [("Authorization", f"Basic {OPERATOR}")],
    "no scheme": [("Authorization", OPERATOR)],
    "two": [bearer(OPERATOR), bearer(OPERATOR)],
    "not ASCII": [bearer("\xff\xfe")],
    "between spaces that are none in HTTP": [bearer(f"\xa0{OPERATOR}\xa0")],
    "behind a space that is none in HTTP": [bearer(f"\x85{OPERATOR}")],
    "the digest of it": [bearer(digest_of(OPERATOR.encode()).hex())],
    "a cookie that nobody gave": [("Cookie", "sae_actor_PORT=abc")],
}


async def test_a_token_is_needed_on_every_route_but_the_open_ones(secured: Running) -> None:
    """Row 71."""
    port = secured.url.rpartition(":")[2]
    for token, given in STRANGE_TOKENS.items():
        headers = [(name, value.replace("PORT", port)) for name, value in given]
        for each, path in ROUTES:
            answer = await ask(secured, each, path, [host(secured), ("Origin", secured.url), *headers])
            if each.open:
                assert answer.status not in (401, 403), (token, each.path, answer)
            else:
                refused(each, answer, 401, token)


def test_what_is_open() -> None:
    """Probes, the page's files, and what it takes to log in: a further open route is to be thought over."""
    files = ("page.js", "login.js", "wire.js", "page.css", "icon.svg", "schema.html", "schema.js", "schema.css")
    page = {("GET", f"/{name}") for name in ("", *files)}
    login = {("POST", "/login"), ("POST", "/logout"), ("GET", "/api/session")}
    probes = {("GET", "/health"), ("GET", "/ready")}
    assert {(each.method, each.path) for each in OPERATIONS if each.open} == page | login | probes


def test_what_reads_by_post_is_few() -> None:
    """A viewer may send it: it changes nothing and makes nothing."""
    assert {(each.method, each.path) for each in OPERATIONS if each.reads} == {
        ("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/api/generations/search"),
    }  # fmt: skip


async def test_a_viewer_reads_and_writes_nothing(secured: Running) -> None:
    for each, path in ROUTES:
        answer = await ask(secured, each, path, [host(secured), bearer(VIEWER)])
        if each.open or each.reads or each.method in READING:
            assert answer.status not in (401, 403), (each.path, answer)
        else:
            refused(each, answer, 403, "a viewer")
    assert len(await secured.events()) == 1


async def test_the_name_of_the_token_is_the_principal(secured: Running) -> None:
    outcome = await secured.command("LoadModel", model="tiny")
    answer = await secured.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, "model": "default"})
    assert answer.status_code == 200
    events = {event["type"]: event for event in await secured.events()}
    assert events["ModelLoadRequested"]["command_id"] == outcome["command_id"]
    assert {events[type_]["principal"] for type_ in ("ModelLoadRequested", "GenerationStarted")} == {"olga"}
    who = (await secured.client.get("/api/session", headers={"authorization": f"Bearer {VIEWER}"})).json()
    assert who == {"principal": "vera", "role": "viewer", "tokens": True}
    nobody = (await secured.client.get("/api/session", headers={"authorization": ""})).json()
    assert nobody == {"principal": None, "role": None, "tokens": True}


async def test_without_tokens_everyone_is_local(service: Running) -> None:
    assert (await service.client.get("/api/session")).json() == {
        "principal": "local",
        "role": "operator",
        "tokens": False,
    }
    assert (await service.client.post("/login", json={"token": "x"})).status_code == 400


# — bodies —


async def test_what_a_page_may_send_unasked_is_not_read(secured: Running) -> None:
    """JSON under a type that needs no preflight: 415 on every route that writes."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = [host(secured), bearer(OPERATOR), *([("Content-Type", kind)] if kind else [])]
        for each, path in ROUTES:
            if each.method not in READING:
                refused(each, await ask(secured, each, path, headers, b'{"type": "UnloadModel"}'), 415, kind)
    assert len(await secured.events()) == 1


# — other origins that are listed —


async def test_a_listed_origin_is_asked_in_on_every_route(secured: Running) -> None:
    asked = "authorization,content-type,idempotency-key,x-stainless-lang,x-stainless-retry-count"
    wanted = [("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", asked)]
    site = [("Origin", LISTED), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "cors")]
    for each, path in ROUTES:
        preflight = await exchange(secured.url, request("OPTIONS", path, [host(secured), *site, *wanted]))
        assert preflight.status == 204
        assert preflight.header("access-control-allow-origin") == LISTED
        assert each.method in str(preflight.header("access-control-allow-methods"))
        assert preflight.header("access-control-allow-headers") == asked
        assert preflight.header("vary") == "Origin, Access-Control-Request-Headers"
        assert preflight.header("access-control-allow-credentials") is None
        stranger = [host(secured), ("Origin", "https://evil.example"), *wanted]
        refused(each, await exchange(secured.url, request("OPTIONS", path, stranger)), 403, "unlisted")
    for headers, status in (([bearer(OPERATOR)], 200), ([], 401)):
        answer = await exchange(secured.url, request("GET", "/api/saes", [host(secured), *site, *headers]))
        assert (answer.status, answer.header("access-control-allow-origin")) == (status, LISTED)
        exposed = str(answer.header("access-control-expose-headers")).split(", ")
        assert {"ETag", "Location", "Retry-After", "WWW-Authenticate", "Allow"} <= {*exposed}
    plain = await exchange(secured.url, request("GET", "/api/saes", [host(secured), bearer(OPERATOR)]))
    assert (plain.header("vary"), plain.header("access-control-allow-origin")) == ("Origin", None)


@pytest.mark.parametrize("asked", ["", "x-y(", "a b", "x-a,,x-b", "x-a: 1", "*, (", ","])
async def test_what_is_no_list_of_headers_is_not_repeated(secured: Running, asked: str) -> None:
    headers = [host(secured), ("Origin", LISTED), ("Access-Control-Request-Method", "GET")]
    answer = await exchange(
        secured.url, request("OPTIONS", "/api/saes", [*headers, ("Access-Control-Request-Headers", asked)])
    )
    assert (answer.status, answer.header("access-control-allow-headers")) == (204, None)
    assert answer.header("access-control-allow-origin") == LISTED


async def test_options_names_all_methods_of_a_route(service: Running) -> None:
    methods: dict[str, set[str]] = {}
    for each, path in ROUTES:
        methods.setdefault(path, {"OPTIONS"}).update(("GET", "HEAD") if each.method == "GET" else (each.method,))
    for path, expected in methods.items():
        answer = await exchange(service.url, request("OPTIONS", path, [host(service)]))
        assert (answer.status, answer.header("allow")) == (204, ", ".join(sorted(expected))), path
    assert methods["/api/saes/x/steering"] >= {"GET", "PUT", "DELETE"}


async def test_nobody_is_listed_unless_asked_for(service: Running) -> None:
    headers = [host(service), ("Origin", LISTED), ("Access-Control-Request-Method", "GET")]
    answer = await exchange(service.url, request("OPTIONS", "/api/saes", headers))
    assert (answer.status, answer.header("access-control-allow-origin"), answer.header("vary")) == (403, None, None)


# — every answer —


async def test_every_answer_is_hardened(secured: Running) -> None:
    for each, path in ROUTES:
        hardened(await ask(secured, each, path, [host(secured), bearer(OPERATOR)]))


async def test_the_description_covers_the_table(service: Running) -> None:
    described = (await service.client.get("/schema")).json()
    assert described["openapi"].startswith("3.1")
    listed = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert listed == {(each.method, each.path) for each in OPERATIONS}
    assert described["components"]["schemas"]["Attach"]["properties"]["type"]["enum"] == ["Attach"]


async def test_the_page_holds_no_secret_and_loads_nothing_foreign(secured: Running) -> None:
    page = await secured.client.get("/", headers={"authorization": ""})
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert OPERATOR not in page.text
    for path in re.findall(r'(?:src|href)="(/[^"]*\.\w+)"', page.text):
        assert (await secured.client.get(path, headers={"authorization": ""})).status_code == 200
    assert not re.search(r"<script>|style=|\son\w+=|https?://", page.text)
