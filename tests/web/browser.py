"""A real Chromium, driven through the DevTools protocol over a pipe: NUL-separated JSON, no library, no port.

with Browser(folder) as browser:
    page = browser.open("http://127.0.0.1:8000/")
    page.click("#generate")
    page.until("document.title === 'done'")
    assert page.complaints == []
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 30.0
_AS_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One process with an empty profile in `folder`; ended with all its children."""

    def __init__(self, folder: Path) -> None:
        assert BINARY is not None, "no chromium binary"
        theirs_in, self._write = _high_pipe()
        self._read, theirs_out = _high_pipe()
        shell = [sys.executable, "-c", _AS_3_AND_4, str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [*shell, BINARY, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
        """A tab at `url`, watched from its first byte on."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Runtime", "Log", "Page", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.call("Page.navigate", {"url": url})
        page.until("document.readyState === 'complete'")
        return page

    def call(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """One command and its result; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def events(self, session: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event.get("sessionId") == session]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            readable, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "the browser does not answer"
            more = os.read(self._read, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"not so in time: {condition}; the page shows: {self.text('body')}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)"
        )
        return found

    def click(self, selector: str, label: str | None = None) -> None:
        """A mouse click on the middle of an element: the first, or the first whose text is `label`."""
        wanted = f"[...document.querySelectorAll({json.dumps(selector)})]"
        wanted += f".find(e => {json.dumps(label)} === null || e.innerText === {json.dumps(label)})"
        self.until(f"{wanted} !== undefined && !{wanted}.disabled")
        place = self.evaluate(
            f"(() => {{ const e = {wanted}; e.scrollIntoView({{ block: 'center' }});"
            " const box = e.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;"
            " return { x, y, hit: e.contains(document.elementFromPoint(x, y)) }; })()"
        )
        assert place["hit"], f"{selector} {label} is covered by something else"
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": place["x"], "y": place["y"], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", {"type": kind, **at})

    def fill(self, selector: str, value: str) -> None:
        """Type `value` into a field, in place of what is there."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()"
        )
        self.call("Input.insertText", {"text": value})

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard goes down and up, wherever the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code})

    @property
    def complaints(self) -> list[str]:
        """What went to the console as an error or warning, uncaught exceptions and broken policy among them."""
        self.evaluate("0")
        found = []
        for event in self._browser.events(self._session):
            params = event.get("params", {})
            match event["method"]:
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
                case "Runtime.exceptionThrown":
                    found.append(str(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    found.append(str(params["args"]))
        return found

    def requested(self) -> set[str]:
        """Every address that the page has asked for."""
        events = self._browser.events(self._session)
        return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}

    def screenshot(self, path: Path) -> None:
        """The whole page, for a person to look at."""
        shot = self.call("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are neither 3 nor 4, which the child uses for its own."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
