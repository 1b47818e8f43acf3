"""Decodes the frames of a GIF as browsers show them.

The canvas has the size of the header, or of the first frame if that is larger; later frames are clipped to it. It
starts transparent. A frame that clears its area makes it transparent, not the background color. A frame that restores
the previous image does so; before the first frame this is the empty canvas. Without a disposal method a frame stays.

Pillow decodes each frame alone on an empty canvas, because its own rules for combining frames are different.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

BROWSER_DELAY = 100
"""Milliseconds that browsers show a frame with a duration below 20 ms."""
CLEAR, RESTORE_PREVIOUS = (2,), (3, 4)
"""Disposal methods; some encoders write 4 for 3."""


def gif_images(path: Path) -> Iterator[tuple[int, Image.Image]]:
    """Duration in milliseconds and image of each frame; use each one before requesting the next."""
    with Image.open(path, formats=["GIF"]) as image:
        page = Image.new("RGBA", image.size)
        for i in itertools.count():
            try:
                image.seek(i)
            except EOFError:
                break
            except (IndexError, struct.error):
                raise ValueError(f"it ends within frame {i + 1}") from None
            before = page.copy() if image.disposal_method in RESTORE_PREVIOUS else page
            patch, box = frame_alone(image)
            page.paste(patch, box, patch)
            shown = image.info.get("duration", 0)
            yield shown if shown >= 20 else BROWSER_DELAY, page
            if image.disposal_method in CLEAR:
                page.paste((0, 0, 0, 0), box)
            page = before
            image.disposal_method = 0  # the default, if the next frame has none
        image.fp.seek(-1, os.SEEK_CUR)
        if image.fp.read(1) != b";":
            raise ValueError(f"it ends after {i} frames, without an end mark")


def frame_alone(image: Any) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The pixels that a frame draws, transparent elsewhere, and their box."""
    image.dispose = None
    if image.tell():
        image.im = Image.new("RGBA", image.size).im
    image.load()
    patch = image.convert("RGBA").crop(image.dispose_extent)
    image.info.pop("transparency", None)
    image._mode = "RGBA"  # the mode in which Pillow decodes the next frame
    return patch, image.dispose_extent
