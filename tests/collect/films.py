"""Videos and GIFs that the tests write, the latter byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)
Options = dict[str, Any]


def grey(level: int, height: int = 48, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def levels(frames: np.ndarray) -> list[int]:
    """Greys of steps of 10, as codecs leave them."""
    return np.rint(frames.mean((1, 2, 3)) / 10).astype(int).tolist()


def write(path: Path, frames: Iterable[np.ndarray], rate: float = 25, codec: str = "mpeg4", **how: Any) -> Path:
    """A video; `times` (in thousandths of a second), `aspect` of a pixel, `pix_fmt` may be given, and options.

    They are `options` of the file and `encoder` options.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    times = how.get("times")
    with av.open(str(path), "w", options=how.get("options", {})) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.bit_rate, stream.options = 4_000_000, how.get("encoder", {})
        for i, pixels in enumerate(frames):
            if not i:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = how.get("pix_fmt", "yuv420p")
                if "aspect" in how:
                    stream.codec_context.sample_aspect_ratio = how["aspect"]
                if times:
                    stream.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """An MP4 with another display matrix: x of the picture goes to (a, b), y to (c, d)."""
    one = 1 << 16
    straight = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    a, b, c, d = (one * value for value in matrix)
    data = path.read_bytes()
    at = data.index(straight, data.index(b"tkhd"))
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return path


def trimmed(path: Path, first: int, frames: int, rate: int = 25) -> Path:
    """An MP4 whose edit list shows so many of its frames, from the first given one on; nothing is encoded again."""
    data = path.read_bytes()
    (movie,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    (track,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    at = data.index(b"elst") + 12
    _, delay = struct.unpack_from(">Ii", data, at)  # of pictures that are stored in another order
    entry = struct.pack(">Ii", frames * movie // rate, delay + first * track // rate)
    path.write_bytes(data[:at] + entry + data[at + 8 :])
    return path


def torn(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def ramp(n: int, first: int = 0) -> list[np.ndarray]:
    return [grey(10 * (first + i)) for i in range(n)]


def quadrants(height: int, width: int) -> np.ndarray:
    """Four colours that meet in the middle of the central square, in a black frame; white beside it."""
    side = min(height, width)
    top, left, half, rim = (height - side) // 2, (width - side) // 2, side // 2, side // 6
    square = np.zeros((side, side, 3), np.uint8)
    for i, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        y, x = half * (i // 2), half * (i % 2)
        square[y : y + half, x : x + half] = colour
    for edge in (slice(rim), slice(side - rim, None)):
        square[edge] = square[:, edge] = 0
    picture = np.full((height, width, 3), WHITE, np.uint8)
    picture[top : top + side, left : left + side] = square
    return picture


def check_quadrants(frame: np.ndarray, colours: tuple[tuple[int, int, int], ...], tolerance: int) -> None:
    """A black frame of 4 pixels of 24, then the colours; a pixel or two at edges is left out, where filters mix."""
    assert frame.shape == (24, 24, 3)
    for edge in (slice(1, 3), slice(21, 23)):
        assert frame[edge, 1:23].max() <= tolerance
        assert frame[1:23, edge].max() <= tolerance
    for i, colour in enumerate(colours):
        rows, columns = (slice(14, 19) if late else slice(5, 10) for late in divmod(i, 2))
        assert np.abs(frame[rows, columns].astype(int) - colour).max() <= tolerance, (i, frame[rows, columns][2, 2])


COLOURS = bytes(sum((RED, GREEN, BLUE, YELLOW, (0, 0, 0)), ())).ljust(3 * 128, b"\x50")
GREYS = bytes(i for i in range(128) for _ in range(3))
"""Palettes."""


def gif(frames: list[Options], height: int = 8, width: int = 8, palette: bytes = COLOURS) -> bytes:
    """A GIF of frames {colour or pixels, at, delay (hundredths), disposal, clear}; colours are the palette's indices.

    A clear code comes before the codes get longer than a byte, so each pixel is a byte.
    """
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80 | 6, 0, 0) + palette
    for frame in frames:
        pixels = np.asarray(frame["pixels"], np.uint8)
        y, x = frame.get("at", (0, 0))
        clear = frame.get("clear")
        flags = frame.get("disposal", 1) << 2 | (clear is not None)
        out += b"\x21\xf9\x04" + struct.pack("<BHB", flags, frame.get("delay", 10), clear or 0) + b"\0"
        out += b"\x2c" + struct.pack("<HHHHB", x, y, pixels.shape[1], pixels.shape[0], 0) + b"\x07"
        flat = pixels.tobytes()
        codes = b"".join(b"\x80" + flat[i : i + 100] for i in range(0, len(flat), 100)) + b"\x81"
        blocks = [codes[i : i + 255] for i in range(0, len(codes), 255)]
        out += b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"
    return out + b"\x3b"


def block(colour: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), colour)
