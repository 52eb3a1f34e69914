"""A browser to test pages in: headless Chromium, driven through two pipes."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 120  # seconds
MISPLACED = Path(__file__).with_name("misplaced.js").read_text()


class Browser:
    """One page of a headless Chromium, by the DevTools protocol."""

    def __init__(self, folder):
        # the browser reads commands from file 3 and answers in file 4
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
            f"--remote-debugging-pipe --user-data-dir={folder}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {CHROMIUM} {flags} 3<&{commands} 4>&{answers}"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.faults, self.requests = [], []
        self.call("Page.enable")
        self.call("Network.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method, **params):
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            if answer.get("method") == "Runtime.exceptionThrown":
                self.faults.append(answer["params"]["exceptionDetails"])
            if answer.get("method") == "Log.entryAdded":
                self.faults.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            part = os.read(self._in, 2**20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, url, width=1280, height=900, dark=False, still=False):
        """Goes to a page, in a window of this size, by someone who wants nothing to move or not."""
        scale = {"deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **scale)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else ""}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme, motion])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression):
        """Returns the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression):
        """Returns once the expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.ask(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def click(self, selector):
        """Clicks where the element is, as a person does."""
        self.ask(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        at = {axis: self.ask(f"{box}.{axis} + 6") for axis in "xy"}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.call("Input.dispatchMouseEvent", type=kind, **at, **pressed)

    def type(self, text):
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key):
        """Presses a named key, such as Tab or ArrowRight."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39}[key]
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            if key == "Enter":  # only what a key types follows a link
                event["text"] = "\r"
            self.call("Input.dispatchKeyEvent", **event)

    def screenshot(self):
        """Returns a PNG of the window."""
        return self.call("Page.captureScreenshot", format="png")["data"]

    def misplaced(self):
        """Returns what overlaps, is cut off or makes the page scroll sideways, in words."""
        return self.ask(MISPLACED)

    def print(self):
        """Shows the page as it is printed, until the next `open`."""
        self.call("Emulation.setEmulatedMedia", media="print")

    def close(self):
        """Ends the browser."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path):
    """A browser, closed at the end; every test fails whose page reported a fault."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    browser = Browser(tmp_path / "browser")
    yield browser
    faults = browser.faults
    browser.close()
    assert faults == []
