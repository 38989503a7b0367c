"""Chromium without a window, driven over its own protocol: what a page does when it is opened."""

import itertools
import json
import os
import select
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)
TIMEOUT = 60


class Browser:
    """A running Chromium; skips the test where there is none."""

    def __init__(self, folder):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(f"needs one of {', '.join(NAMES)}")
        ours, theirs = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        redirected = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", program, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(ours[0], theirs[1]),
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self.commands, self.answers = ours[1], theirs[0]
        self.numbers, self.buffer, self.events = itertools.count(1), b"", []

    def close(self):
        self.call("Browser.close")
        self.process.wait(TIMEOUT)
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method, session=None, **params):
        """Send a command and return its result; events that come before it are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def receive(self):
        until = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            ready = select.select([self.answers], [], [], until - time.monotonic())[0]
            assert ready, "Chromium does not answer"
            self.buffer += os.read(self.answers, 1 << 20)
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path, width=1100, scheme="light"):
        """Open a file as a page of that width in CSS pixels; returns what happened then."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            **{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", session, features=features)
        self.call("Page.navigate", session, url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()
        return Visit(self, session)


class Visit:
    """A page that was opened."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session

    def said(self):
        """What the page wrote to the console: errors of scripts, styles and requests as well."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.browser.events if event["method"] in methods]

    def requests(self):
        """The addresses that the page asked for, apart from those that hold their content."""
        sent = [e for e in self.browser.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def evaluate(self, script):
        """The value of an expression of JavaScript within the page."""
        answer = self.browser.call(
            "Runtime.evaluate", self.session, expression=script, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]
