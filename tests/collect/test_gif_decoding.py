"""GIFs as browsers show them; each page is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collect import video, video_reader
from collect.files import BrokenFile
from tests.collect.films import BLUE, GREEN, GREYS, RED, WHITE, Options, block, gif

R, G, B, CLEAR = 0, 1, 2, 9


def decode(path: Path) -> np.ndarray:
    return video_reader.decode(path, path.name, video.Args(min_frames=1, size=8))


def shown(tmp_path: Path, frames: list[Options], **how: object) -> np.ndarray:
    path = tmp_path / "a.gif"
    path.write_bytes(gif(frames, **how))  # type: ignore[arg-type]
    return decode(path)


def page(*parts: tuple[tuple[int, int, int], int, int, int, int]) -> np.ndarray:
    """White, with a colour from row to row and column to column."""
    pixels = np.full((8, 8, 3), WHITE, np.uint8)
    for colour, top, bottom, left, right in parts:
        pixels[top:bottom, left:right] = colour
    return pixels


@pytest.mark.parametrize("take_back", [3, 4])
@pytest.mark.parametrize("clear", [None, CLEAR])
def test_what_the_first_frame_takes_back_leaves_nothing(tmp_path: Path, take_back: int, clear: int | None) -> None:
    spots = [{"pixels": block(G, 2, 2), "at": (2, x), "disposal": take_back, "clear": clear} for x in (0, 3)]
    whole = {"pixels": block(R), "disposal": take_back, "clear": clear}
    expected = [page((RED, 0, 8, 0, 8)), page((GREEN, 2, 4, 0, 2)), page((GREEN, 2, 4, 3, 5))]
    np.testing.assert_array_equal(shown(tmp_path, [whole, *spots]), expected)


def test_a_later_frame_is_cut_off_at_the_screen(tmp_path: Path) -> None:
    frames = [{"pixels": block(R)}, {"pixels": block(G, 6, 6), "at": (5, 4)}, {"pixels": block(B, 20, 20)}]
    expected = [page((RED, 0, 8, 0, 8)), page((RED, 0, 8, 0, 8), (GREEN, 5, 8, 4, 8)), page((BLUE, 0, 8, 0, 8))]
    np.testing.assert_array_equal(shown(tmp_path, frames), expected)
    frames[1] |= {"disposal": 2}  # cleared to where the screen ends
    frames[2] = {"pixels": block(B, 1, 1)}
    expected[2] = page((RED, 0, 5, 0, 8), (RED, 0, 8, 0, 4), (BLUE, 0, 1, 0, 1))
    np.testing.assert_array_equal(shown(tmp_path, frames), expected)


def test_the_first_frame_makes_the_screen_larger(tmp_path: Path) -> None:
    frames = [{"pixels": block(R, 6, 6), "at": (2, 2)}, {"pixels": block(G, 1, 8), "at": (7, 0)}]
    expected = [page((RED, 2, 8, 2, 8)), page((RED, 2, 8, 2, 8), (GREEN, 7, 8, 0, 8))]
    np.testing.assert_array_equal(shown(tmp_path, frames, height=4, width=4), expected)


@pytest.mark.parametrize("clear", [None, CLEAR])
def test_beside_a_first_frame_that_is_smaller_than_the_screen_it_is_white(tmp_path: Path, clear: int | None) -> None:
    frames = [{"pixels": block(R, 4, 3), "at": (1, 2), "clear": clear}, {"pixels": block(B, 1, 1), "clear": clear}]
    expected = [page((RED, 1, 5, 2, 5)), page((RED, 1, 5, 2, 5), (BLUE, 0, 1, 0, 1))]
    np.testing.assert_array_equal(shown(tmp_path, frames), expected)


def test_a_frame_that_says_nothing_of_its_end_stays(tmp_path: Path) -> None:
    frames = [
        {"pixels": block(R), "disposal": 1},
        {"pixels": block(G, 2, 2), "disposal": 2},
        {"pixels": block(B, 2, 2), "at": (4, 4), "disposal": 0},
        {"pixels": block(G, 1, 1), "at": (0, 7)},
    ]
    red = page((RED, 0, 8, 0, 8), (WHITE, 0, 2, 0, 2), (BLUE, 4, 6, 4, 6), (GREEN, 0, 1, 7, 8))
    np.testing.assert_array_equal(shown(tmp_path, frames)[3], red)


def test_a_palette_of_greys(tmp_path: Path) -> None:
    """Pillow reads it in a mode of its own."""
    hole = np.where(np.eye(4) > 0, CLEAR, 100)
    frames = [{"pixels": block(20, 6, 8)}, {"pixels": hole, "at": (4, 0), "clear": CLEAR, "disposal": 2}]
    pages = shown(tmp_path, [*frames, {"pixels": block(50, 1, 1)}], palette=GREYS)[..., 0]
    expected = np.full((8, 8), 255)
    expected[:6] = 20
    np.testing.assert_array_equal(pages[0], expected)
    expected[4:, :4] = np.where(np.eye(4) > 0, expected[4:, :4], 100)
    np.testing.assert_array_equal(pages[1], expected)
    expected[4:, :4], expected[0, 0] = 255, 50
    np.testing.assert_array_equal(pages[2], expected)


def test_a_gif_that_was_cut_between_two_frames_is_torn(tmp_path: Path) -> None:
    data = gif([{"pixels": block(i)} for i in range(4)])
    cuts = [len(gif([{"pixels": block(i)} for i in range(n)])) - 1 for n in (2, 3)]
    for cut in (*cuts, len(data) - 1):
        (tmp_path / "a.gif").write_bytes(data[:cut])
        with pytest.raises(BrokenFile, match=r"a.gif: it ends after \d frames, without an end mark"):
            decode(tmp_path / "a.gif")
    (tmp_path / "a.gif").write_bytes(data[: cuts[0] + 4])
    with pytest.raises(BrokenFile, match=r"a.gif: it ends within frame 3"):
        decode(tmp_path / "a.gif")
