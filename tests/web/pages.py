"""Pages of a service, opened."""

from __future__ import annotations

from tests.process.harness import Process
from tests.process.test_kill import SCRIPT
from tests.web.browser import Browser, Page

LIVE = "document.querySelector('#link').dataset.state === 'live'"
POSITIONS = "[...document.querySelectorAll('#events li')].map(e => Number(e.dataset.position))"


def prepared(process: Process, steps: int) -> None:
    for key, command in SCRIPT[:steps]:
        assert process.send(key, **command)["status"] == "completed"


def opened(browser: Browser, url: str, width: int = 1280) -> Page:
    page = browser.open(url, width)
    page.until(f"document.querySelector('#link') && {LIVE}")
    return page


def generated(page: Page) -> tuple[str, str]:
    """The texts without and under the intervention."""
    page.click("#generate")
    page.until("document.querySelectorAll('.receipt')[1].innerText !== ''")
    page.until("!document.querySelector('#generate').disabled")
    return page.text("#baseline"), page.text("#steered")


STRENGTH = "document.querySelector('#edits input[type=number]')"
