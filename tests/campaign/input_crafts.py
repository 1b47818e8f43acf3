"""Inputs that are whole and odd, and what is to be read of them, worked out here by other means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from collect import moving_mnist, video, video_reader
from tests.collect.films import BLUE, GREEN, RED, YELLOW, Options, gif, grey, levels, quadrants, trimmed, turned, write
from worldmodel.data.store import Store

Craft = Callable[[np.random.Generator, Path], tuple[str, Callable[[], np.ndarray], Callable[[np.ndarray], bool]]]
"""Writes an input into a folder; returns what it is, how it is read, and whether what was read is right."""
CLEAR, PALETTE = 9, np.array([RED, GREEN, BLUE, YELLOW, (0, 0, 0)])


def decode(path: Path, size: int) -> np.ndarray:
    return video_reader.decode(path, path.name, video.Args(min_frames=1, size=size))


def craft_gif(rng: np.random.Generator, folder: Path) -> tuple[str, Callable, Callable]:
    """Frames of any extent, within the screen or not, with any disposal."""
    side, path = int(rng.integers(2, 10)), folder / "a.gif"
    frames = [gif_frame(rng, side) for _ in range(rng.integers(1, 7))]
    screen = side
    if rng.random() < 0.3:  # the first frame makes the screen as large as it is
        screen = int(rng.integers(1, side + 1))
        y, x = frames[0]["at"]
        frames[0]["pixels"] = np.resize(frames[0]["pixels"], (side - y, side - x))
    else:
        frames[0]["pixels"] = frames[0]["pixels"][: side - frames[0]["at"][0], : side - frames[0]["at"][1]]
    path.write_bytes(gif(frames, screen, screen))
    expected = composed(frames, side)
    return f"{frames}", lambda: decode(path, side), lambda got: np.array_equal(got, expected)


def gif_frame(rng: np.random.Generator, side: int) -> Options:
    clear = CLEAR if rng.random() < 0.7 else None
    drawn = rng.choice([0, 1, 2, 3, 4, clear or 0], rng.integers(1, side + 3, 2))
    at = tuple(rng.integers(0, side, 2).tolist())
    return {"pixels": drawn, "at": at, "disposal": int(rng.integers(0, 5)), "clear": clear}


def composed(frames: list[Options], side: int) -> np.ndarray:
    """Pixel by pixel: -1 is nothing, which a page shows as white."""
    shown, page = [], np.full((side, side), -1)
    for frame in frames:
        before = page.copy()
        inside = []
        for (i, j), colour in np.ndenumerate(frame["pixels"]):
            y, x = frame["at"][0] + i, frame["at"][1] + j
            if y < side and x < side:
                inside.append((y, x))
                if frame["clear"] is None or colour != CLEAR:
                    page[y, x] = colour
        shown.append(np.where(page[..., None] < 0, 255, PALETTE[np.clip(page, 0, 4)]))
        if frame["disposal"] == 2:
            for place in inside:
                page[place] = -1
        elif frame["disposal"] > 2:
            page = before
    return np.stack(shown).astype(np.uint8)


def craft_turned(rng: np.random.Generator, folder: Path) -> tuple[str, Callable, Callable]:
    """Any orientation: each pixel goes to where the matrix takes it."""
    a, d = rng.choice([-1, 1], 2).tolist()
    matrix = (a, 0, 0, d) if rng.random() < 0.5 else (0, a, d, 0)
    path = write(folder / "a.mp4", [quadrants(32, 32)] * 2)
    straight = decode(path, 32)
    y, x = np.indices((32, 32))
    to_x, to_y = matrix[0] * x + matrix[2] * y, matrix[1] * x + matrix[3] * y
    expected = np.empty_like(straight)
    expected[:, to_y - to_y.min(), to_x - to_x.min()] = straight
    turned(path, matrix)
    return f"{matrix}", lambda: decode(path, 32), lambda got: np.array_equal(got, expected)


def craft_trimmed(rng: np.random.Generator, folder: Path) -> tuple[str, Callable, Callable]:
    """An edit list that shows any part."""
    n = int(rng.integers(2, 24))
    first = int(rng.integers(n))
    frames = int(rng.integers(1, n - first + 1))
    codec = str(rng.choice(["libx264", "mpeg4"]))
    path = trimmed(write(folder / "a.mp4", [grey(10 * i, 32, 32) for i in range(n)], codec=codec), first, frames)
    expected = list(range(first, first + frames))
    return f"{codec} {n} {first} {frames}", lambda: decode(path, 16), lambda got: levels(got) == expected


def craft_array(rng: np.random.Generator, folder: Path) -> tuple[str, Callable, Callable]:
    """Moving MNIST with its axes in any order, of any type, in any kind of file."""
    n, t = int(rng.integers(21, 300)), int(rng.choice([5, 10, 20, 30]))  # 20 is known as time
    videos = rng.integers(0, 256, (n, t, 6, 6), np.uint8)
    axes = str(rng.choice(["tnhw", "nthw", "nhwt", "tnchw", "nthwc", "hwtn"]))
    array = np.einsum(f"nthw->{axes.replace('c', '')}", videos)
    array = np.expand_dims(array, axes.index("c")) if "c" in axes else array
    kind = rng.choice([np.uint8] * 6 + [np.float32, np.int64, np.bool_, object])
    path = folder / str(rng.choice(["a.npy", "a.npz"]))
    key = str(rng.choice(["arr_0", "arr_0", "x_train"]))
    if path.suffix == ".npy":
        np.save(path, array.astype(kind))
    else:
        np.savez(path, **{key: array.astype(kind)})
    asked = axes if rng.random() < 0.5 else ""

    def read() -> np.ndarray:
        moving_mnist.main(moving_mnist.Args(source=path, out=folder / "out", axes=asked, channels=1, num_workers=1))
        store = Store(folder / "out")
        return store.read("frames", 0, store.n_rows).reshape(
            len(store.episode_ends), -1, *store.env_spec.frame_shape[:2]
        )

    what = f"{kind} {array.shape} {axes} in {path.name} {key}, asked {asked!r}"
    return what, read, lambda got: np.array_equal(got, videos)


CRAFTS: dict[str, Craft] = {"gif": craft_gif, "turned": craft_turned, "trimmed": craft_trimmed, "array": craft_array}
