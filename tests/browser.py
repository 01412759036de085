"""A real browser without a window, asked over its debugging pipe what a page does."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Find a browser by its usual names."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(
    find_browser() is None, reason=f"needs a browser: none of {', '.join(NAMES)} is installed"
)

PLUMBING = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Opens one page, and takes note of everything that it does.

    Attributes:
        messages: errors and warnings of the console, exceptions and policy violations.
        dialogs: what a script said in an alert.
    """

    def __init__(self, program: str, folder: Path, *, width: int = 1200, dark: bool = False) -> None:
        self._asked: dict[str, str] = {}
        self.messages: list[str] = []
        self.dialogs: list[str] = []
        self._seen: set[str] = set()
        self._number = 0
        self._waiting = b""
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = [
            "--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", f"--window-size={width},900", f"--user-data-dir={folder}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]  # fmt: skip
        import fcntl

        # The browser reads from the descriptor 3 and writes to 4: the ends of the pipes are moved out of their way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PLUMBING, *map(str, ends), program, *options, "about:blank"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        targets = self._ask("Target.getTargets", session=False)["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", session=False, targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Security"):
            self._ask(f"{domain}.enable")

    @property
    def requests(self) -> list[str]:
        """Requested addresses, except those that carry their content, and those that the policy bars."""
        return list(self._asked.values())

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(timeout=120)

    def open(self, path: Path) -> None:
        """Open a file as a double click does, and wait until it has loaded and settled."""
        self._ask("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 120
        while "Page.loadEventFired" not in self._seen:
            assert time.monotonic() < deadline, "the page did not load"
            self._take(0.5)
        self.run("Promise.all([...document.images].map((image) => image.decode().catch(() => null)))")
        self._take(0.3)

    def run(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def emulate(self, *, width: int = 1200, media: str = "screen") -> None:
        """Lay the page out for a window of another width, or for paper (`print`)."""
        size = {"height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", width=width, **size)
        self._ask("Emulation.setEmulatedMedia", media=media)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at one place of the window, in pixels, and let it go at another."""
        for kind, (x, y), buttons in [("Pressed", start, 1), ("Moved", end, 1), ("Released", end, 0)]:
            pressed = {"button": "left", "buttons": buttons, "clickCount": 1}
            self._ask("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **pressed)

    def press(self, key: str) -> None:
        """Press a key that has a name, such as `ArrowRight`."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def _ask(self, method: str, *, session: bool = True, **params: Any) -> dict[str, Any]:
        self._number += 1
        question = {"id": self._number, "method": method, "params": params}
        if session:
            question["sessionId"] = self._session
        os.write(self._out, json.dumps(question).encode() + b"\0")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for event in self._take(0.5):
                if event.get("id") == question["id"]:
                    assert "error" not in event, event
                    return event["result"]
        raise AssertionError(f"the browser did not answer {method}")

    def _take(self, seconds: float) -> list[dict[str, Any]]:
        """Read what has come, and write down what the page did."""
        if not select.select([self._in], [], [], seconds)[0]:
            return []
        self._waiting += os.read(self._in, 2**20)
        *whole, self._waiting = self._waiting.split(b"\0")
        events = [json.loads(part) for part in whole]
        for event in events:
            self._note(event.get("method", ""), event.get("params", {}))
        return events

    def _note(self, method: str, params: dict[str, Any]) -> None:
        self._seen.add(method)
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self._asked[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            self._asked.pop(params["requestId"], None)
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.messages.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.messages.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(params["exceptionDetails"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._number += 1
            closing = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self._out, json.dumps(closing | {"sessionId": self._session}).encode() + b"\0")
