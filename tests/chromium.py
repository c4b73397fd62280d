# SPDX-License-Identifier: Apache-2.0
"""A system chromium without a window, driven over its debugging pipe with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find():
    """Path of a chromium, or None: SUITE_CHROMIUM, else what the search path has."""
    names = (os.environ.get("SUITE_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Tab:
    """One page: it opens files, runs script, takes pictures, and remembers what went wrong."""

    def __init__(self, to_browser, from_browser):
        self.to, self.back, self.count, self.session = to_browser, from_browser, 0, None
        self.problems, self.requests, self.events, self.buffer = [], [], [], b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.back, 1 << 20)
            if not piece:
                raise RuntimeError("the browser went away")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method, values):
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"].get("exception", {}).get("description", values)))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.problems.append(str(values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def open(self, path, fragment=""):
        """Load a file and wait until it is there."""
        self.events.clear()
        # the number makes it another address, so that a new fragment loads the page anew
        self.call("Page.navigate", url=f"{Path(path).resolve().as_uri()}?{self.count}{fragment}")
        while "Page.loadEventFired" not in self.events:
            self._read()

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", answer))
        return answer["result"].get("value")

    def look(self, width, height=900, dark=False, media=""):
        """Size of the window in CSS pixels, the theme that the system asks for, and the medium."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def picture(self, path, whole=False):
        """A screenshot as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def tab(program, profile):
    """A tab of a browser that ends with the block.

    Args:
        program: path of the chromium.
        profile: an empty folder for it.
    """
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def pipes():
        os.dup2(to_read, 3)
        os.dup2(from_write, 4)

    for end in (to_read, from_write):  # keep clear of 3 and 4 themselves
        os.set_inheritable(end, True)
    with open(Path(profile) / "chromium.log", "wb") as log:
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        browser = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=pipes, stdout=log, stderr=log)
    os.close(to_read)
    os.close(from_write)
    try:
        yield Tab(to_write, from_read)
    finally:
        os.close(to_write)
        browser.terminate()
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait(10)
        os.close(from_read)
        time.sleep(0)
