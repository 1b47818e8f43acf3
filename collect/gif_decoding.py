"""The frames of a GIF, as browsers show them.

The screen is as large as the header says, or as its first frame reaches; what later frames draw beyond it is cut off.
It begins transparent. What a frame clears at its end becomes transparent too, and not the background's colour; what
a frame takes back becomes what was before, which for the first one is nothing. A frame that says nothing stays.

Pillow reads each frame, alone on an empty page: it would paint later ones by rules of its own.
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
"""Thousandths of a second that browsers show a frame of a GIF that asks for fewer than 20."""
CLEAR, RESTORE_PREVIOUS = (2,), (3, 4)
"""What frames ask for at their end; 4 is how some writers meant 3."""


def gif_images(path: Path) -> Iterator[tuple[int, Image.Image]]:
    """How many thousandths of a second a page is shown, and the page; look at it before the next is asked for."""
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
            image.disposal_method = 0  # the next frame's, if it says nothing
        image.fp.seek(-1, os.SEEK_CUR)
        if image.fp.read(1) != b";":
            raise ValueError(f"it ends after {i} frames, without an end mark")


def frame_alone(image: Any) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """What a frame draws, transparent where it draws nothing, and where."""
    image.dispose = None
    if image.tell():
        image.im = Image.new("RGBA", image.size).im
    image.load()
    patch = image.convert("RGBA").crop(image.dispose_extent)
    image.info.pop("transparency", None)
    image._mode = "RGBA"  # how Pillow draws the next one
    return patch, image.dispose_extent
