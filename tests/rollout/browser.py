"""Headless Chromium on the end of two pipes, spoken to in its DevTools protocol: a page as a person finds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


class Browser:
    """One page of a browser of its own."""

    def __init__(self, url: str, profile: Path) -> None:
        (here, theirs), (taken, given) = os.pipe(), os.pipe()
        flags = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        )
        self.process = subprocess.Popen(  # the browser reads commands from 3 and answers on 4
            ["bash", "-c", f'exec "$@" 3<&{taken} 4>&{theirs}', "bash", CHROMIUM, *flags, f"--user-data-dir={profile}"],
            pass_fds=(taken, theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(taken)
        os.close(theirs)
        self.input, self.output = os.fdopen(here, "rb"), os.fdopen(given, "wb")
        self.sent, self.rest, self.session = 0, b"", ""
        target = self.call("Target.createTarget", url=url)["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events on the way to it are passed over."""
        self.sent += 1
        info = {"id": self.sent, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        self.output.write(json.dumps(info).encode() + b"\0")
        self.output.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = self.input.read1(1 << 16)  # type: ignore[attr-defined]
            assert more, "the browser is gone"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def value(self, script: str) -> Any:
        """What a line of JavaScript comes to."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Until it comes true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"{script} did not come true in {seconds} s"
            time.sleep(0.05)

    def key(self, key: str, down: bool) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown" if down else "keyUp", key=key)

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({selector!r}).click()")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.input.close()
        self.output.close()
