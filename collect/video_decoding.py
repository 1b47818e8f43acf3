"""Decodes the frames of a video as a player shows them, with PyAV.

Samples hidden by an MP4's edit list are left out. The aspect ratio of pixels is reported, and images are rotated and
mirrored by the display matrix. Transparency becomes white.

A video is truncated if it ends before nine tenths of what its header announces. This is the number of frames if the
header has it, without those hidden by an edit list, and otherwise the duration. (The header of a Matroska or WebM file
with sound does not have the duration of its images.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from PIL import Image

from collect.images import on_white

MIN_COMPLETE = 0.9
"""Fraction of the announced length that must be present."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec whose default decoder drops the alpha channel -> decoder that keeps it."""


def video_stream(container: Any) -> tuple[Any, float]:
    """The first video stream, and its frames per second."""
    streams = container.streams.video
    rate = streams and (streams[0].average_rate or streams[0].guessed_rate)
    if not rate:
        raise ValueError("it has no video stream")
    return streams[0], float(rate)


def shown_frames(container: Any) -> Iterator[av.VideoFrame]:
    """The visible frames of a video; `ValueError` if it is truncated."""
    stream, rate = video_stream(container)
    frames, seconds = announced_length(container, stream)
    count, end = 0, 0.0
    for frame in decode_frames(container, stream):
        count += 1
        end = max(end, (count - 1) / rate if frame.time is None else frame.time)
        yield frame
    if count < MIN_COMPLETE * frames:
        raise ValueError(f"it ends after {count} of {frames} frames")
    if end + 1 / rate < MIN_COMPLETE * seconds:
        raise ValueError(f"it ends after {end + 1 / rate:.1f} of {seconds:.1f} seconds")


def announced_length(container: Any, stream: Any) -> tuple[int, float]:
    """Frames and seconds that the header announces; 0 for what it does not have."""
    frames = stream.frames
    if frames and "mp4" in container.format.name.split(","):
        frames = sum(not entry.is_discard for entry in stream.index_entries)
    said = len(container.streams) == 1 and not frames
    return frames, (container.duration or 0) / av.time_base if said else 0.0


def decode_frames(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    name = ALPHA_DECODERS.get(stream.codec_context.name) if stream.metadata.get("alpha_mode") == "1" else None
    decoder: Any = av.CodecContext.create(name, "r") if name else stream.codec_context
    decoder.thread_count = 1  # several processes already decode in parallel
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def to_rgb(frame: av.VideoFrame) -> Image.Image:
    """A frame as it is stored, in RGB."""
    if any(component.is_alpha for component in frame.format.components):
        return on_white(Image.fromarray(frame.to_ndarray(format="rgba", threads=1)))
    return Image.fromarray(frame.to_ndarray(format="rgb24", threads=1))


def orient(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The pixels (h, w, c) of a frame, mirrored and rotated by multiples of 90 degrees for display.

    The matrix maps x to (a, b) and y to (c, d), so the axes are swapped if b and c are larger.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
