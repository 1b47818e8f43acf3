"""File formats of Moving MNIST and MNIST.

Moving MNIST was published as a .npy of uint8 with the axes t, n, h, w: time, video, height, width. Other versions have
the videos first, an axis c for the channel, or are a .npz. A .npz has the array in `arr_0`, or all frames concatenated
in `input_raw_data`, as bytes or as floats from 0 to 1, with their `clips`.

Which of the first two axes is time? The one of length 20, the length of published videos; else the shorter one, if the
other is much longer. If neither is the case, or the height might be time too, the shape is ambiguous, and `--axes` is
needed.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collect.files import BrokenFile
from worldmodel.utils.errors import UserError, one_line

PUBLISHED = "tnhw"
FRAMES = 20
"""Frames of a published video."""
FAR_MORE, AT_LEAST = 20, 100
"""With no axis of length 20, the longer one counts videos if it is this many times the other and at least this long."""
IDX_IMAGES = 0x00000803
"""First bytes of an MNIST image file: type uint8, three dimensions."""


@dataclass(frozen=True)
class VideoArray:
    """An array of videos in a file, with the meaning of its axes."""

    name: Path
    """The file that was given."""
    path: Path
    """The .npy to read: that file, or one unpacked from it."""
    shape: tuple[int, ...]
    """Shape as four axes."""
    axes: str
    """One letter per axis."""

    def size(self, axis: str) -> int:
        return self.shape[self.axes.index(axis)]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Videos (n, t, h, w) from `start` to `stop`, uint8."""
        stored = np.load(self.path, mmap_mode="r").reshape(self.shape)
        videos = stored.transpose([self.axes.index(axis) for axis in "nthw"])[start:stop]
        if videos.dtype == np.uint8:
            return videos
        if not ((videos >= 0) & (videos <= 1)).all():
            raise BrokenFile(f"{self.name}: videos from {start} on are not between 0 and 1; download it again")
        return np.rint(255 * videos.astype(np.float32)).astype(np.uint8)


@contextlib.contextmanager
def open_video_array(source: Path, axes: str, length: int, out: Path | None) -> Iterator[VideoArray]:
    """Open the videos of a .npy or .npz; a .npz is unpacked, since only a .npy can be memory-mapped.

    It is unpacked beside the store that is written, where there is room, or in the system's folder for a bucket.
    """
    if source.suffix.lower() != ".npz":
        yield of_array(source, source, axes)
        return
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=out and out.parent) as folder:
        path, clips = unpack(source, Path(folder))
        yield of_array(source, path, axes) if path.stem == "arr_0" else of_frames(source, path, clips, length)


def unpack(source: Path, folder: Path) -> tuple[Path, np.ndarray | None]:
    """Unpack the array of videos into a folder; returns its path, and the array `clips` if there is one."""
    try:
        with zipfile.ZipFile(source) as archive:
            keys = [Path(name).stem for name in archive.namelist()]
            key = next((key for key in ("arr_0", "input_raw_data") if key in keys), None)
            if key is None:
                known = ", ".join(keys) or "nothing"
                raise UserError(f"{source} has {known}, but no arr_0 or input_raw_data; give another file")
            path = Path(archive.extract(f"{key}.npy", folder))
            with archive.open("clips.npy") if "clips" in keys else contextlib.nullcontext() as file:
                return path, np.load(file, allow_pickle=False) if file else None
    except UserError:
        raise
    except Exception as error:  # errors of zipfile, its decompressors, the disk and NumPy
        raise unreadable(source, error) from None


def of_array(name: Path, path: Path, axes: str) -> VideoArray:
    array = read_array(name, path, (4, 5), "Moving MNIST is uint8 (frames, videos, height, width)")
    axes = axes or axes_of(name, array.shape)
    kept = axes.replace("c", "", 1)
    sizes = dict(zip(axes, array.shape, strict=False))
    if len(axes) != array.ndim or sorted(kept) != sorted(PUBLISHED) or sizes.get("c", 1) != 1:
        raise UserError(
            f"axes {axes!r} do not fit {name} of shape {array.shape}; give one letter per axis in order, such as tnhw"
        )
    return VideoArray(name, path, tuple(sizes[axis] for axis in kept), kept)


def axes_of(name: Path, shape: tuple[int, ...]) -> str:
    """The letters of the axes, derived from the shape; `UserError` if it is ambiguous."""
    picture = "hw" if len(shape) == 4 else "chw" if shape[2] == 1 else "hwc"
    first, second, *sides = shape
    if told := (first == FRAMES) != (second == FRAMES):
        time = FRAMES
    else:
        time = min(first, second)
        told = max(first, second) >= max(FAR_MORE * time, AT_LEAST)
    if told and not {time, FRAMES} & set(sides):
        return ("tn" if first == time else "nt") + picture
    raise UserError(f"the time axis of {name}, {shape}, is ambiguous; give --axes, such as nthw for videos first")


def of_frames(name: Path, path: Path, clips: np.ndarray | None, length: int) -> VideoArray:
    """Videos stored as concatenated frames (n * t, 1, h, w)."""
    array = read_array(name, path, (4,), "input_raw_data is (all frames, 1, height, width)", floats=True)
    if clips is not None:
        length = clip_length(name, clips)
        if len(array) != clips.shape[1] * length:
            told = f"{clips.shape[1]} videos of {length} frames"
            raise UserError(f"{name} has {len(array)} frames, but its clips need {told}; download it again")
    if array.shape[1] != 1 or len(array) % length:
        raise UserError(f"{name} holds {array.shape}, which are not videos of {length} frames; give their --length")
    return VideoArray(name, path, (len(array) // length, length, *array.shape[2:]), "nthw")


def clip_length(name: Path, clips: np.ndarray) -> int:
    """Frames per video, from clips (2, n, 2): start and length of the given and of the predicted part of each video."""
    if clips.ndim == 3 and clips.shape[::2] == (2, 2) and clips.shape[1] and clips.dtype.kind in "iu":
        starts, lengths = clips.astype(np.int64).transpose(2, 0, 1)
        length = int(lengths[:, 0].sum())
        begin = length * np.arange(clips.shape[1])
        if length > 0 and (starts == [begin, begin + lengths[0]]).all() and (lengths.sum(0) == length).all():
            return length
    raise UserError(f"the clips of {name} are not videos of one length, one after another; give another file")


def read_array(name: Path, path: Path, dimensions: tuple[int, ...], what: str, floats: bool = False) -> np.ndarray:
    """Memory-map a .npy, and check its number of dimensions and its type."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype, size = array.shape, array.dtype, array.offset + array.nbytes
    except Exception as error:  # errors of NumPy, the file system, and the parser of the header
        raise unreadable(name, error) from None
    known = dtype == np.uint8 or (floats and dtype.kind == "f")
    if len(shape) not in dimensions or not known or 0 in shape:
        raise UserError(f"{name} holds {dtype} {shape}, but {what}; give another file")
    if path.stat().st_size != size:
        raise UserError(f"{name} is longer than the {dtype} {shape} that it says it holds; download it again")
    return array


def read_idx(path: Path) -> np.ndarray:
    """The images (n, h, w) of an idx3-ubyte file, gzipped or not."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        magic, n, h, w = struct.unpack_from(">4I", data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise unreadable(path, error) from None
    if magic != IDX_IMAGES or len(data) != 16 + n * h * w:
        raise UserError(f"{path} is not a complete idx3-ubyte file; give MNIST's train-images-idx3-ubyte.gz")
    return np.frombuffer(data, np.uint8, offset=16).reshape(n, h, w)


def unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({one_line(error)}); download it again")
