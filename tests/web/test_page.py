"""The page at `/` in a real browser, on a real service process with the engine that needs no torch."""

from __future__ import annotations

import json
import re
import signal
from importlib.resources import files
from pathlib import Path

import pytest

from sae_actor.api import web
from sae_actor.domain.events import PAYLOADS
from tests.process.harness import Process, until
from tests.process.test_kill import EDIT, SAE_ID, SCRIPT
from tests.web.browser import BINARY, Browser
from tests.web.pages import LIVE, POSITIONS, STRENGTH, generated, opened, prepared

needs_browser = pytest.mark.skipif(BINARY is None, reason="no chromium binary (Debian package: chromium)")


@needs_browser
def test_a_session(browser: Browser, service: Process) -> None:
    prepared(service, 2)
    page = opened(browser, service.url)
    page.until("document.querySelector('#model').innerText.startsWith('tiny')")
    assert "smollm2-135m-layer15" in page.text("#saes")
    assert "2304 features" in page.text("#saes")

    page.click("#saes button", "Attach")
    page.until("document.querySelector('.status').innerText === 'attached'")
    page.until("!document.querySelector('#steering').hidden")
    assert page.text("#under").lower() == "under the intervention (no edit is set)"
    bare = generated(page)
    assert bare[0] == bare[1] != ""

    page.fill("#steer [name=feature]", "584")
    page.fill("#steer [name=strength]", "85")
    page.click("#steer button")
    page.until("document.querySelector('#edits').innerText.includes('feature 584')")
    steering = service.client.get(f"/api/saes/{SAE_ID}/steering").json()
    assert steering["features"] == [
        {**EDIT, "method": "add", "positions": "all", "unit": "raw", "sae_id": None, "when": None}
    ]
    page.until("document.querySelector('#under').innerText.toLowerCase() === 'under the intervention'")
    steered = generated(page)
    assert steered[0] == bare[0] != steered[1]
    without, under = page.texts(".receipt")
    assert " · 0 positions edited" in without
    assert re.search(r" · [1-9]\d* positions edited", under)

    page.fill("#edits input[type=number]", "12.5")
    page.click("h1")
    page.until("document.querySelector('#events').innerText.includes('584=12.5')")
    page.click("#edits input[type=checkbox]")
    page.until("document.querySelector('#edits li').className === 'off'")
    assert page.text("#under").lower() == "under the intervention (its edits are out of force)"
    assert generated(page) == bare
    page.until("document.querySelector('#edits input[type=number]').value === '12.5'")

    page.click("#edits button", "Remove")
    page.until("document.querySelectorAll('#edits li').length === 0")
    page.click("#saes button", "Detach")
    page.until("document.querySelector('.status').innerText === 'cached'")
    assert service.client.get("/api/saes/attachment").json()["attachments"] == []

    events = service.events()
    page.until(f"{POSITIONS}.length === {len(events)}")
    assert page.evaluate(POSITIONS) == [event["position"] for event in reversed(events)]
    assert page.texts("#events .type") == [event["type"] for event in reversed(events)]
    page.click("#events summary")
    page.until("document.querySelector('#events pre') !== null")
    assert json.loads(page.text("#events pre")) == events[-1]
    assert page.complaints == []
    assert {url.removeprefix(service.url).partition("?")[0] for url in page.requested()} <= {
        "/", "/page.js", "/wire.js", "/login.js", "/page.css", "/icon.svg", "/health", "/v1/chat/completions",
        "/api/session", "/api/capabilities", "/api/model", "/api/saes", "/api/state", "/api/events",
        f"/api/saes/{SAE_ID}/attach",
        f"/api/saes/{SAE_ID}/detach", f"/api/saes/{SAE_ID}/steering",
    }  # fmt: skip


UP, DOWN = ("ArrowUp", 38), ("ArrowDown", 40)


@needs_browser
def test_a_text_whose_edits_touched_a_sink_says_so(browser: Browser, service: Process) -> None:
    prepared(service, 2)
    page = opened(browser, service.url)
    page.click("#saes button", "Attach")
    page.until("!document.querySelector('#steering').hidden")
    for exclude, told in ((["sink"], False), ([], True)):
        body = {"features": [{**EDIT, "exclude": exclude}]}
        assert service.client.put(f"/api/saes/{SAE_ID}/steering", json=body).status_code == 200
        generated(page)
        without, under = page.texts(".receipt")
        assert "warning" not in without
        assert ("warning: attention sinks were edited, at position 0" in under) is told


@needs_browser
def test_a_text_is_shaded_by_a_feature_and_underlined_where_it_was_edited(browser: Browser, service: Process) -> None:
    """Token n turns on the features n, n + 1 and n + 2 of the fake engine, modulo 2304, at 3, 2 and 1."""
    prepared(service, 2)
    assert service.send("attach", type="Attach", sae_id=SAE_ID)["status"] == "completed"
    page = opened(browser, service.url)
    page.until("!document.querySelector('#steering').hidden")
    bare = generated(page)
    assert page.evaluate("document.querySelectorAll('output [data-shade], output .edited').length") == 0
    edit = {"feature": 584, "strength": 85.0, "positions": "generated"}
    service.client.put(f"/api/saes/{SAE_ID}/steering", json={"features": [edit]})
    page.until("document.querySelector('#edits').innerText.includes('feature 584')")
    page.fill("#ask [name=shade]", "103")
    without, under = generated(page)
    assert without == bare[0]
    for output, text, edited in (("#baseline", without, False), ("#steered", under, True)):
        spans = f"[...document.querySelectorAll('{output} span')].filter(each => each.innerText !== '')"
        assert page.evaluate(f"{spans}.map(each => each.innerText).join('')") == text
        shades = [{0: 5, 1: 4, 2: 2}.get(103 - ord(each)) for each in text]
        assert any(shades)
        # The last token was not run.
        assert page.evaluate(f"{spans}.map(each => Number(each.dataset.shade ?? 0))") == [
            *(each or 0 for each in shades[:-1]), 0,
        ]  # fmt: skip
        held = [edited] * (len(text) - 1) + [False]
        assert page.evaluate(f"{spans}.map(each => each.className === 'edited')") == held
    assert page.complaints == []


@needs_browser
def test_what_is_typed_while_an_edit_is_sent_stays(browser: Browser, service: Process) -> None:
    """The list shows the edit before its answer is here, and the next one is being typed."""
    prepared(service, 3)
    page = opened(browser, service.url)
    page.until("!document.querySelector('#steering').hidden")
    page.evaluate(
        "void (window.fetch = ((own) => async (...of) => { const answer = await own(...of); "
        "if (of[1]?.method === 'PUT') await new Promise((go) => { window.answerNow = go; }); "
        "return answer; })(window.fetch))"
    )
    page.fill("#steer [name=feature]", "1")
    page.fill("#steer [name=strength]", "3")
    page.click("#steer button")
    page.until("window.answerNow && document.querySelectorAll('#edits input[type=number]').length === 1")
    page.fill("#steer [name=feature]", "7")
    page.fill("#steer [name=strength]", "9")
    page.evaluate("void window.answerNow()")
    page.until("!document.querySelector('#steer button').disabled")
    values = "[...document.querySelectorAll('#steer [type=number]')].map(e => e.value)"
    assert page.evaluate(values) == ["7", "9"]


@needs_browser
def test_arrow_keys_go_on_changing_a_strength(browser: Browser, service: Process) -> None:
    """Every step is a change that is sent; the field keeps the focus through it and through the refresh after it."""
    prepared(service, 4)

    def steered() -> float:
        strength: float = service.client.get(f"/api/saes/{SAE_ID}/steering").json()["features"][0]["strength"]
        return strength

    page = opened(browser, service.url)
    page.until(f"{STRENGTH}?.value === '85'")
    page.evaluate(f"{STRENGTH}.focus()")
    for key, strength in ((UP, 86), (UP, 87), (DOWN, 86), (UP, 87), (UP, 88)):
        page.press(*key)
        until(lambda strength=strength: steered() == strength)  # type: ignore[misc]
        page.until(f"document.querySelector('#events').innerText.includes('584={strength} add')")
        assert page.evaluate(f"document.activeElement === {STRENGTH} && !{STRENGTH}.disabled")
    for _ in range(20):
        page.press(*DOWN)
    until(lambda: steered() == 68)
    assert page.evaluate(f"document.activeElement === {STRENGTH}")
    page.fill("#edits input[type=number]", "")
    page.click("h1")  # what is left empty is put back
    page.until(f"{STRENGTH}.value === '68'")
    assert steered() == 68
    assert page.complaints == []


@needs_browser
def test_a_box_keeps_the_focus(browser: Browser, service: Process) -> None:
    prepared(service, 4)
    page = opened(browser, service.url)
    for box, shown in (
        ("#edits input[type=checkbox]", "document.querySelector('#edits li').className === 'off'"),
        ("#saes input[type=checkbox]", "!document.querySelector('#watching').hidden"),
    ):
        page.until(f"document.querySelector('{box}') !== null")
        page.evaluate(f"document.querySelector('{box}').focus()")
        page.press(" ", 32)
        page.until(shown)
        page.until(f"document.activeElement === document.querySelector('{box}')")
    assert page.complaints == []


@needs_browser
def test_positions_by_role_are_accepted(browser: Browser, service: Process) -> None:
    prepared(service, 3)
    page = opened(browser, service.url)
    page.until("!document.querySelector('#steering').hidden")
    offered = page.evaluate(
        "[...document.querySelector('#steer [name=positions]').options].map(e => [e.text, e.value])"
    )
    assert offered == [
        *([name, name] for name in ("all", "prompt", "generated", "response", "last_prompt")),
        ["system messages", '{"role":"system"}'],
        ["user messages", '{"role":"user"}'],
        ["assistant messages", '{"role":"assistant"}'],
    ]
    for number, (_, value) in enumerate(offered):
        page.fill("#steer [name=feature]", str(number))
        page.fill("#steer [name=strength]", "3")
        page.evaluate(f"document.querySelector('#steer [name=positions]').value = {json.dumps(value)}")
        page.click("#steer button")
        page.until(f"document.querySelectorAll('#edits input[type=number]').length === {number + 1}")
    steering = service.client.get(f"/api/saes/{SAE_ID}/steering").json()["features"]
    assert [each["positions"] for each in steering] == [
        "all", "prompt", "generated", "response", "last_prompt", {"role": "system"}, {"role": "user"},
        {"role": "assistant"},
    ]  # fmt: skip
    assert page.evaluate("document.querySelector('#problem').hidden")
    assert page.complaints == []


@needs_browser
def test_what_fires_is_watched(browser: Browser, service: Process) -> None:
    prepared(service, 3)
    page = opened(browser, service.url)
    page.until("document.querySelector('#saes input[type=checkbox]')?.checked === false")
    generated(page)
    assert page.evaluate("document.querySelector('#watching').hidden")
    page.click("#saes input[type=checkbox]")
    page.until("!document.querySelector('#watching').hidden")
    assert service.client.get("/api/state").json()["monitors"][0]["top_k"] == 5
    generated(page)
    page.until("document.querySelectorAll('#firing li').length > 0")
    first = page.texts("#firing li")[-1]
    # The prompt of a chat ends with the mark of the answer; the engine without torch has three features on.
    assert re.fullmatch(r'">"\s*\d+ \(3\.0\), \d+ \(2\.0\), \d+ \(1\.0\)', first)
    page.click("#saes input[type=checkbox]")
    page.until("document.querySelector('#watching').hidden")
    assert service.client.get("/api/state").json()["monitors"] == []
    assert page.complaints == []


@needs_browser
def test_events_go_on_without_a_gap_through_a_death(browser: Browser, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Process(data) as first:
        prepared(first, 3)
        page = opened(browser, first.url)
        page.until(f"{POSITIONS}.length === 7")
        first.signal(signal.SIGKILL)
        page.until(f"!({LIVE})")
        assert "trying again" in page.text("#link")
    with Process(data, "--port", first.url.rpartition(":")[2]) as second:
        second.until_ready()
        prepared(second, 4)  # before the page is back: the first three were answered already
        page.until(LIVE, 30)
        second.send("more", type="Steer", sae_id=SAE_ID, features=[])
        events = second.events()
        page.until(f"{POSITIONS}.length >= {len(events)}")
        assert page.evaluate(POSITIONS) == list(range(len(events), 0, -1))
        assert page.texts("#events .type")[:2] == ["SteeringChanged", "SteeringChanged"]
        assert "no model" not in page.text("#model")


@needs_browser
def test_a_refusal_is_shown_and_can_be_dismissed(browser: Browser, service: Process) -> None:
    service.send("import", **SCRIPT[1][1])
    page = opened(browser, service.url)
    assert page.text("#model") == "no model is loaded"
    page.click("#saes button", "Attach")
    page.until("!document.querySelector('#problem').hidden")
    assert "model" in page.text("#problem p")
    page.until("document.querySelector('#events .type').innerText === 'CommandRejected'")
    page.click("#problem button")
    page.until("document.querySelector('#problem').hidden")


@needs_browser
def test_names_are_text_and_never_markup(browser: Browser, service: Process) -> None:
    hostile = "<img src=x onerror=document.title='taken'>"
    assert service.send("load", type="LoadModel", model=hostile)["status"] == "completed"
    page = opened(browser, service.url)
    page.until("document.querySelector('#model').innerText.includes('onerror')")
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.title") == "sae-actor"
    assert page.complaints == []


@needs_browser
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_sticks_out_at_the_side(browser: Browser, service: Process, width: int) -> None:
    prepared(service, 4)
    page = opened(browser, service.url, width)
    page.until("document.querySelectorAll('#edits li').length > 0")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_page_listens_to_every_type_of_event() -> None:
    script = files(web.__name__).joinpath("wire.js").read_text("utf-8")
    listed = re.search(r"const DURABLE = \[(.*?)\];", script, re.DOTALL)
    assert listed is not None
    assert re.findall(r'"(\w+)"', listed[1]) == list(PAYLOADS)
