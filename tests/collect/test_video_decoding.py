"""What a player shows of videos: all orientations, edit lists, transparency; and which files are torn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collect import video, video_reader
from collect.files import BrokenFile
from tests.collect.films import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    check_quadrants,
    levels,
    quadrants,
    ramp,
    torn,
    trimmed,
    turned,
    write,
)


def decode(path: Path, size: int = 16) -> np.ndarray:
    return video_reader.decode(path, path.name, video.Args(min_frames=1, size=size))


SHOWN = {  # where x and y go, and the colours then: upper left, upper right, lower left, lower right
    "as it is": ((1, 0, 0, 1), (RED, GREEN, BLUE, YELLOW)),
    "a quarter clockwise": ((0, 1, -1, 0), (BLUE, RED, YELLOW, GREEN)),
    "upside down": ((-1, 0, 0, -1), (YELLOW, BLUE, GREEN, RED)),
    "a quarter anticlockwise": ((0, -1, 1, 0), (GREEN, YELLOW, RED, BLUE)),
    "left and right exchanged": ((-1, 0, 0, 1), (GREEN, RED, YELLOW, BLUE)),
    "top and bottom exchanged": ((1, 0, 0, -1), (BLUE, YELLOW, RED, GREEN)),
    "rows and columns exchanged": ((0, 1, 1, 0), (RED, BLUE, GREEN, YELLOW)),
    "the other corners exchanged": ((0, -1, -1, 0), (YELLOW, GREEN, BLUE, RED)),
}
"""The first four are as phones write them; a player turns and mirrors so (compared with ffmpeg's)."""


@pytest.mark.parametrize("case", SHOWN)
def test_every_orientation(tmp_path: Path, case: str) -> None:
    matrix, colours = SHOWN[case]
    path = turned(write(tmp_path / "a.mp4", [quadrants(48, 80)] * 2), matrix)
    check_quadrants(decode(path, size=24)[-1], colours, 12)


@pytest.mark.parametrize(("first", "frames"), [(0, 20), (9, 11), (6, 14), (3, 8)])
def test_what_an_edit_list_hides_is_not_shown(tmp_path: Path, first: int, frames: int) -> None:
    """Cut without encoding again: at the end, at the beginning, which is no key frame, and at both."""
    path = trimmed(write(tmp_path / "a.mp4", ramp(20), codec="libx264"), first, frames)
    assert levels(decode(path)) == list(range(first, first + frames))


@pytest.mark.parametrize("first", [0, 9])
def test_a_torn_file_is_torn_whatever_its_edit_list_hides(tmp_path: Path, first: int) -> None:
    """Half of what is shown is lost; the header stands in front, as in files for the web."""
    noise = list(np.random.default_rng(0).integers(0, 255, (30, 48, 80, 3), np.uint8))
    path = write(tmp_path / "a.mp4", noise, options={"movflags": "faststart"})
    trimmed(path, first, 30 - first)
    assert len(decode(path)) == 30 - first
    lost = (30 - first) / 30 / 2
    with pytest.raises(BrokenFile, match=rf"a.mp4: it ends after \d+ of {30 - first} frames"):
        decode(torn(path, 1 - lost))


CODECS = {
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "vp8.webm": ("libvpx", "yuva420p"),
    "a.mov": ("qtrle", "argb"),
    "a.mkv": ("ffv1", "yuva420p"),
    "a.avi": ("ffv1", "bgra"),
}


@pytest.mark.parametrize("name", CODECS)
def test_what_is_transparent_becomes_white(tmp_path: Path, name: str) -> None:
    """Red: the left is transparent, the middle half so, the right is not."""
    picture = np.full((48, 48, 4), (200, 0, 0, 255), np.uint8)
    picture[:, :16, 3], picture[:, 16:32, 3] = 0, 128
    codec, pix_fmt = CODECS[name]
    encoder = {"auto-alt-ref": "0"} if codec == "libvpx" else {}  # it does not go with transparency
    frames = decode(write(tmp_path / name, [picture] * 3, codec=codec, pix_fmt=pix_fmt, encoder=encoder), size=48)
    assert len(frames) == 3
    expected = [(255, 255, 255), (227, 127, 127), (200, 0, 0)]
    np.testing.assert_allclose(frames[:, 24, 8::16], [expected] * 3, atol=4)
