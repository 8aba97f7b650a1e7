"""The page with tokens: who is let in, and what each may do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.process.harness import Process
from tests.web.browser import Browser, Page
from tests.web.pages import LIVE, POSITIONS, generated, prepared
from tests.web.test_page import needs_browser

# — with tokens —

TOKENS = {
    "vera": ("viewer", "viewer-secret-token"),
    "uma": ("user", "user-secret-token"),
    "olga": ("operator", "operator-secret-token"),
}


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """The environment of a service that asks for tokens."""
    lines = [f"{name} {role} {hashlib.sha256(token.encode()).hexdigest()}" for name, (role, token) in TOKENS.items()]
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    return {"SAE_ACTOR_SERVER_TOKENS_FILE": str(file)}


def log_in(page: Page, name: str) -> None:
    page.until("document.querySelector('#login')?.hidden === false")
    page.fill("#token", TOKENS[name][1])
    page.click("#login button")
    page.until(f"document.querySelector('#link') && {LIVE}")


@needs_browser
def test_a_login_lets_the_page_in_and_a_logout_out(browser: Browser, tmp_path: Path, tokens: dict[str, str]) -> None:
    with Process(tmp_path / "data", environment=tokens) as process:
        page = browser.open(process.url)
        page.until("document.querySelector('#login')?.hidden === false")
        assert page.evaluate("document.querySelector('main').hidden")
        page.fill("#token", "wrong")
        page.click("#login button")
        page.until("document.querySelector('#refused').innerText !== ''")
        assert page.text("#refused") == "the token is not valid"

        log_in(page, "olga")
        assert page.text("#who span") == "olga"
        assert page.evaluate("document.cookie") == ""
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}]) + document.body.innerHTML")
        assert TOKENS["olga"][1] not in kept
        process.client.headers["authorization"] = f"Bearer {TOKENS['olga'][1]}"
        prepared(process, 2)
        page.click("#saes button", "Attach")
        page.until("document.querySelector('.status').innerText === 'attached'")
        without, under = generated(page)
        assert without == under != ""
        principals = {event["type"]: event["principal"] for event in process.events()}
        assert principals["AttachRequested"] == principals["GenerationStarted"] == "olga"

        again = browser.open(process.url)  # the cookie is the browser's: a second tab is in as well
        again.until(f"document.querySelector('#link') && {LIVE}")
        again.click("#logout")
        again.until("document.querySelector('#login')?.hidden === false")
        page.click("#generate")
        page.until("document.querySelector('#login')?.hidden === false")
        assert all("token" not in url for url in page.requested())
        # What was refused is on the console; a broken policy or an exception would be as well.
        assert all("401" in each for each in page.complaints), page.complaints


@needs_browser
def test_a_viewer_sees_what_happens_and_is_offered_no_more(
    browser: Browser, tmp_path: Path, tokens: dict[str, str]
) -> None:
    with Process(tmp_path / "data", environment=tokens) as process:
        process.client.headers["authorization"] = f"Bearer {TOKENS['olga'][1]}"
        prepared(process, 4)
        page = browser.open(process.url)
        log_in(page, "vera")
        assert page.text("#who span") == "vera (may read only)"
        page.until("document.querySelectorAll('#edits li').length > 0")
        assert "feature 584" in page.text("#edits")
        shown = "[...document.querySelectorAll('main :is(button, form)')].filter(e => e.checkVisibility()).length"
        assert page.evaluate(shown) == 0
        refused = page.evaluate("fetch('/api/commands', {method: 'POST', headers: {'Content-Type': 'application/json'},"
                                " body: '{\"type\": \"UnloadModel\"}'}).then(a => a.status)")  # fmt: skip
        assert refused == 403


@needs_browser
def test_a_user_generates_and_is_offered_no_command(browser: Browser, tmp_path: Path, tokens: dict[str, str]) -> None:
    with Process(tmp_path / "data", environment=tokens) as process:
        process.client.headers["authorization"] = f"Bearer {TOKENS['olga'][1]}"
        prepared(process, 4)
        page = browser.open(process.url)
        log_in(page, "uma")
        assert page.text("#who span") == "uma (may generate)"
        page.until("document.querySelectorAll('#edits li').length > 0")
        without, under = generated(page)
        assert without != under != ""
        shown = "[...document.querySelectorAll('#saes button, #steer, #edits button')].filter(e => e.checkVisibility())"
        assert page.evaluate(f"{shown}.length") == 0
        begun = next(each for each in process.events() if each["type"] == "GenerationStarted")
        assert begun["principal"] == "uma"
        assert page.complaints == []


@needs_browser
def test_a_restart_asks_for_the_token_again(browser: Browser, tmp_path: Path, tokens: dict[str, str]) -> None:
    data = tmp_path / "data"
    with Process(data, environment=tokens) as first:
        page = browser.open(first.url)
        log_in(page, "vera")
    with Process(data, "--port", first.url.rpartition(":")[2], environment=tokens):
        page.until("document.readyState === 'complete' && document.querySelector('#login')?.hidden === false", 30)
        log_in(page, "olga")
        page.until(f"{POSITIONS}.length === 2")
        assert page.text("#who span") == "olga"
