"""Host, origin and token, over the whole table of routes."""

from __future__ import annotations

import socket

import pytest

from sae_actor.api.routes import TABLE

from .conftest import Running, serving

pytestmark = pytest.mark.anyio
ROUTES = [(each.method, each.path.replace("{sae_id}", "x").replace("{command_id}", "x")) for each in TABLE]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_strangers_are_refused_on_every_route(service: Running, headers: dict[str, str]) -> None:
    for method, path in ROUTES:
        answer = await service.client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
    assert len(await service.events()) == 1


async def test_the_page_of_our_own_is_let_in(service: Running) -> None:
    headers = {"origin": service.url, "sec-fetch-site": "same-origin"}
    assert (await service.client.get("/api/saes", headers=headers)).status_code == 200


@pytest.mark.parametrize("hosts", [[], ["127.0.0.1", "127.0.0.1"]])
async def test_exactly_one_host(service: Running, hosts: list[str]) -> None:
    lines = ["GET /health HTTP/1.1", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    with socket.create_connection(service.url.removeprefix("http://").split(":")) as raw:  # type: ignore[arg-type]
        raw.setblocking(False)
        import asyncio

        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, "\r\n".join(lines).encode())
        answer = await loop.sock_recv(raw, 4096)
    assert b" 400 " in answer.split(b"\r\n")[0]


async def test_a_token_is_needed_on_every_route_but_the_probes() -> None:
    async with serving(tokens=("secret-token",)) as service:
        for given in (
            {"authorization": ""},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer " + "x" * 9000},
        ):
            for method, path in ROUTES:
                answer = await service.client.request(method, path, headers=given)
                expected = 200 if path in ("/health", "/ready") else 401
                assert answer.status_code == expected, (method, path)
                if expected == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
        assert (await service.client.get("/api/saes")).status_code == 200
        in_query = await service.client.get("/api/saes?token=secret-token", headers={"authorization": ""})
        assert in_query.status_code == 400


async def test_the_description_covers_the_table(service: Running) -> None:
    answer = await service.client.get("/schema")
    described = answer.json()
    assert described["openapi"].startswith("3.1")
    listed = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert listed == {(each.method, each.path) for each in TABLE}
    assert described["components"]["schemas"]["Attach"]["properties"]["type"] == {"enum": ["Attach"]}


async def test_the_page(service: Running) -> None:
    page = await service.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/page.js", "/page.css"):
        assert path in page.text
        assert (await service.client.get(path)).status_code == 200
