"""The page behind nginx under a path, set up as the README says, in a real browser."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import httpx
import pytest

from tests.process.harness import Process
from tests.process.test_kill import SAE_ID, SCRIPT
from tests.process.test_stream_clients import needs_nginx, proxied
from tests.web.browser import BINARY, Browser

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
TOKEN = "secret-token"
LIVE = "document.querySelector('#link').dataset.state === 'live'"

pytestmark = [
    needs_nginx,
    pytest.mark.skipif(BINARY is None, reason="no chromium binary (Debian package: chromium)"),
]


def location(url: str) -> str:
    """The README's example, for a service at `url`."""
    (found,) = re.findall(r"```nginx\n(.*?)```", README, re.DOTALL)
    return textwrap.dedent(found).replace("http://127.0.0.1:8000", url)


def test_the_page_under_a_path(tmp_path: Path) -> None:
    environment = {"SAE_ACTOR_SERVER_TOKEN": TOKEN, "SAE_ACTOR_SERVER_HOSTS": "127.0.0.1"}
    with (
        Process(tmp_path / "data", environment=environment) as process,
        proxied(tmp_path, process.url, location(process.url)) as url,
        Browser(tmp_path / "profile") as browser,
    ):
        authorized = {"Authorization": f"Bearer {TOKEN}"}
        process.client.headers.update(authorized)
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        page = browser.open(f"{url}/sae/")
        page.until("!document.querySelector('#login').hidden")
        page.fill("#token", TOKEN)
        page.click("#login-form button")
        page.until(LIVE)
        page.until("document.querySelector('#model').innerText.startsWith('tiny')")
        page.fill("#steer [name=feature]", "584")
        page.fill("#steer [name=strength]", "85")
        page.click("#steer button")
        page.until("document.querySelector('#edits').innerText.includes('feature 584')")
        page.click("#generate")
        page.until("document.querySelectorAll('.receipt')[1].innerText !== ''")
        page.until("document.querySelector('#events').innerText.includes('SteeringChanged')")
        assert page.complaints == []
        assert all(each.startswith(f"{url}/sae/") for each in page.requested())

        described = browser.open(f"{url}/sae/schema.html")
        described.until("document.body.dataset.state === 'ready'")
        described.click("#attach summary")
        assert f"{url}/sae/api/saes/" in described.text("#attach")
        assert described.complaints == []

        steer = {"type": "Steer", "sae_id": SAE_ID, "features": []}
        answer = httpx.post(f"{url}/sae/api/commands", json=steer, headers=authorized)
        assert answer.headers["location"] == f"{url}/sae/api/commands/{answer.json()['command_id']}"
        assert httpx.get(answer.headers["location"], headers=authorized).json()["status"] == "completed"
