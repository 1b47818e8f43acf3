"""Record docs/play.gif: the page of rollout/play.py in headless Chromium, under a fixed sequence of keys.

    python docs/record_play.py

The keys go down and up in the browser, as a person's would. The page's own clock stands still: a step is asked for and
shown, then a picture is taken, so that the film does not depend on how fast the machine is.
"""

from __future__ import annotations

import base64
import sys
import tempfile
import threading
from io import BytesIO
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from PIL import Image

from rollout.play import Args, serve
from tests.rollout.browser import Browser

KEYS = "aawawawwawwwdwaaawwaaaaaaaadwwwaaaaaaaaaaaaaaaaaaaaaawaawawwaa"
"""One key a step."""
STEP = """(async () => {
    await ask("/step", {action: action()});
    for (const key of document.querySelectorAll("#help kbd"))
        if (held.has(key.textContent)) { key.style.background = "#f2b04a"; key.style.color = "#000"; }
        else { key.style.background = key.style.color = ""; }
})()"""
"""What the page does in a tick; the key that is down is lit."""
OUT = Path(__file__).with_name("play.gif")


def screenshot(page: Browser, width: int, height: int) -> Image.Image:
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = page.call("Page.captureScreenshot", format="png", clip=clip)["data"]
    return Image.open(BytesIO(base64.b64decode(shot))).convert("RGB")


def record(seed: int, width: int = 470, height: int = 330) -> list[Image.Image]:
    """A picture of the page after each key."""
    server = serve(Args(port=0, seed=seed))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    frames = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Browser(f"http://127.0.0.1:{server.server_port}/", Path(profile)) as page,
    ):
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.wait("document.querySelectorAll('#figures tr').length > 5")
        page.value("document.querySelectorAll('figure img').forEach(i => i.style.width = '192px')")
        page.value("document.body.style = 'margin: 0.6rem; overflow: hidden; font-size: 13px'")
        for key in KEYS:
            page.key(key, down=True)
            done = page.call("Runtime.evaluate", expression=STEP, awaitPromise=True)
            assert "exceptionDetails" not in done, done
            frames.append(screenshot(page, width, height))
            page.key(key, down=False)
    server.shutdown()
    server.server_close()
    return frames


def main(seed: int = 3) -> None:
    first, *rest = [frame.quantize(64, dither=Image.Dither.NONE) for frame in record(seed)]
    first.save(OUT, save_all=True, append_images=rest, duration=115, loop=0, optimize=True)
    print(f"{OUT.name}: {len(rest) + 1} frames, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
