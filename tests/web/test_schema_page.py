"""The description of the API in a real browser: everything that is in it, from this service alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_actor.api.openapi.document import description
from sae_actor.api.operations import OPERATIONS
from tests.process.harness import Process
from tests.web.browser import BINARY, Browser, Page

pytestmark = pytest.mark.skipif(BINARY is None, reason="no chromium binary (Debian package: chromium)")
VISIBLE = "[...document.querySelectorAll('#operations details')].filter(e => e.checkVisibility()).map(e => e.id)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def opened(browser: Browser, url: str) -> Page:
    page = browser.open(f"{url}/schema.html")
    page.until("document.body.dataset.state === 'ready'")
    return page


def test_the_description_to_be_read(browser: Browser, tmp_path: Path) -> None:
    with Process(tmp_path / "data") as process:
        page = opened(browser, process.url)
        said = description()
        assert sorted(page.evaluate(VISIBLE)) == sorted(each.handler.__name__ for each in OPERATIONS)
        shapes = page.evaluate("[...document.querySelectorAll('#schemas details')].map(e => e.id)")
        assert sorted(shapes) == sorted(said["components"]["schemas"])

        page.click("#attach summary")
        told = page.text("#attach")
        for word in (
            "sae_id",
            "Idempotency-Key",
            "AttachBody",
            "sae_already_attached",
            "curl -H",
            f"{process.url}/api",
        ):
            assert word in told, word
        page.click("#attach a", "AttachBody")
        page.until("document.querySelector('#AttachBody').open")
        shape = page.text("#AttachBody")
        assert '"steer"' in shape
        assert "0 to 4095" in shape

        page.fill("#find", "no such word")
        assert page.evaluate(VISIBLE) == []
        page.fill("#find", "logit_bias")
        assert page.evaluate(VISIBLE) == ["completions"]
        page.fill("#find", "/steering")
        page.until(f"{VISIBLE}.length > 0")
        assert set(page.evaluate(VISIBLE)) == {"get_steering", "put_steering", "delete_steering"}

        assert page.complaints == []
        assert all(url.startswith(process.url) for url in page.requested())


def test_a_link_opens_its_part(browser: Browser, tmp_path: Path) -> None:
    with Process(tmp_path / "data") as process:
        page = browser.open(f"{process.url}/schema.html#post_command")
        page.until("document.querySelector('#post_command')?.open")
        examples = page.evaluate("[...document.querySelectorAll('#post_command pre')].map(e => e.innerText)")
        assert len(examples) == 15


def test_without_a_login_it_says_where_to_get_one(browser: Browser, tmp_path: Path) -> None:
    with Process(tmp_path / "data", environment={"SAE_ACTOR_SERVER_TOKEN": "secret-token"}) as process:
        page = opened(browser, process.url)
        assert "Log in on the page first" in page.text("#refused")
        assert page.evaluate(VISIBLE) == []
        page.evaluate(
            "fetch('/login', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            " body: JSON.stringify({token: 'secret-token'})})"
        )
        again = opened(browser, process.url)
        assert len(again.evaluate(VISIBLE)) == len(OPERATIONS)
