"""Read RoboNet (Dasari et al., 2019) into a store, from HDF5 files with one trajectory of one of seven robots each.

    python collect/robonet.py --source hdf5

A file has `env/cam0_video` and more cameras, either as one MP4 (`frames`) or as JPEGs (`frame0`, `frame1`, ...),
`env/state` (t, up to 5), and `policy/actions`, one fewer than frames. If one of the three is longer, the rest is
dropped. There is no reward and no published split; the split is random, 8:1:1.

Frames are scaled so that the shorter side is `--size`, and the center square is kept. `image_format` of a camera is the
channel order for the published reader. For an MP4 this is the order in the file. For a JPEG it is the order in OpenCV,
which reverses it. So a JPEG with `image_format` RGB has red and blue exchanged in the file.

Robots have actions and states of different sizes. All files of a store have the same. Files of another size are skipped
and named, not padded or cut, because a padded zero would be an action that was never taken. Bounds are as for BAIR.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from collect.files import BrokenFile, ReaderArgs, fill_store, names_digest, reason
from collect.steps import make_rows, print_action_range
from collect.video_decoding import orient, shown_frames, to_rgb
from configs import command
from configs.written import Written, recorded
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, Count, Pixels, Positive


@dataclass(frozen=True, kw_only=True)
class Args(ReaderArgs):
    """Read RoboNet."""

    source: Path = Path("hdf5")
    """Folder with .hdf5 files, at any depth."""
    out: Address = Address("runs/robonet/data.zarr")
    """Store to write; an unfinished one resumes."""
    camera: Count = 0
    """Number of the camera, from 0."""
    size: Pixels = 64
    """Height and width of a frame in pixels."""
    action_width: Positive = 4
    """Number of dimensions of an action; files with another number are skipped."""
    state_width: Positive = 5
    """Number of dimensions of a state; files with another number are skipped."""
    pattern: str = "*.hdf5"
    """Pattern of file names; they contain the robot, so *sawyer*.hdf5 selects one."""
    low: float = -100.0
    """Lower bound of all numbers of an action."""
    high: float = 100.0
    """Upper bound of all numbers of an action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise UserError(f"low must be below high, {self.high}, not {self.low}")


def make_env_spec(args: Args) -> EnvSpec:
    n = args.action_width
    return EnvSpec(
        name="robonet",
        frame_shape=(args.size, args.size, 3),
        action=ActionSpec(kind="Box", low=(args.low,) * n, high=(args.high,) * n),
        variables=tuple(f"state_{i}" for i in range(args.state_width)),
    )


def read_file(args: Args, path: Path) -> Sequence[Episode]:
    """The episode of a file; `BrokenFile` if it cannot be read."""
    try:
        with h5py.File(path) as file:
            return (make_episode(args, file),)
    except UserError as error:
        raise BrokenFile(f"{path}: {error}") from None
    except Exception as error:  # h5py, PyAV and Pillow raise errors of many types
        raise BrokenFile(f"{path}: {reason(error)}; download it again") from None


def make_episode(args: Args, file: h5py.File) -> Episode:
    """The rows of an episode."""
    frames = read_frames(file, args.camera, args.size)
    states = read_array(file, "env/state", args.state_width, "--state-width")
    actions = read_array(file, "policy/actions", args.action_width, "--action-width")
    rows = min(len(frames), len(states), len(actions) + 1)
    if rows < 2:
        raise UserError(
            f"it has {len(frames)} frames, {len(states)} states and {len(actions)} actions, too few for a step"
        )
    spec = make_env_spec(args).action
    try:
        return make_rows(frames[:rows], actions[: rows - 1], spec, variables=states[:rows])
    except UserError as error:
        raise UserError(f"{error}; download it again, or set other bounds if the file is fine") from None


def read_array(file: h5py.File, name: str, width: int, flag: str) -> np.ndarray:
    """A finite array (t, width)."""
    if name not in file:
        raise UserError(f"there is no {name}; download it again")
    array = np.asarray(file[name], np.float32)
    if array.ndim != 2 or array.shape[1] != width:
        raise UserError(f"{name} has shape {array.shape}, not (t, {width}); give {flag} to read files like it")
    if not np.isfinite(array).all():
        raise UserError(f"{name} is not finite; download it again")
    return array


def read_frames(file: h5py.File, camera: int, size: int) -> np.ndarray:
    """The frames (t, size, size, 3) of a camera."""
    name = f"env/cam{camera}_video"
    if name not in file:
        known = ", ".join(sorted(k[3:-6] for k in file.get("env", {}) if k.endswith("_video"))) or "none"
        raise UserError(f"there is no camera {camera}, only {known}; set --camera")
    group = file[name]
    if "frames" in group:
        frames, mixed = decode_mp4(group["frames"][:].tobytes()), channel_order(group["frames"]) == "BGR"
    elif "frame0" in group:
        count = sum(key.startswith("frame") for key in group)
        missing = [t for t in range(count) if f"frame{t}" not in group]
        if missing:
            raise UserError(f"{name} has {count} frames, but no frame{missing[0]}; download it again")
        frames = [photo(group, f"frame{t}") for t in range(count)]
        mixed = channel_order(group["frame0"]) == "RGB"
    else:
        raise UserError(f"{name} has neither frames nor frame0; download it again")
    if not frames:
        raise UserError(f"{name} has no frames; download it again")
    small = np.stack([crop_and_resize(frame, size) for frame in frames])
    return np.ascontiguousarray(small[..., ::-1]) if mixed else small


def channel_order(dataset: h5py.Dataset) -> Literal["RGB", "BGR", ""]:
    """The `image_format` of a camera; "" if it has none, which means RGB in the file."""
    said = dataset.attrs.get("image_format", "")
    said = said.decode() if isinstance(said, bytes) else str(said)
    if said not in ("RGB", "BGR", ""):
        raise UserError(f"image_format is {said!r}, not RGB or BGR; download it again")
    return said  # type: ignore[return-value]


def photo(group: h5py.Group, name: str) -> Image.Image:
    """Decode a JPEG."""
    try:
        return Image.open(io.BytesIO(group[name][:].tobytes())).convert("RGB")
    except UnidentifiedImageError:  # its own message has a memory address
        raise UserError(f"cannot identify image {name}; download it again") from None


def decode_mp4(data: bytes) -> list[Image.Image]:
    """Decode a complete MP4."""
    with av.open(io.BytesIO(data), "r") as container:
        return [Image.fromarray(orient(np.asarray(to_rgb(frame)), frame)) for frame in shown_frames(container)]


def crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
    """The center square (size, size, 3), resized by area averaging."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    method = Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC
    return np.array(image.resize((size, size), method, box=(left, top, left + side, top + side)))


def main(args: Args) -> Written:
    found = sorted(args.source.rglob(args.pattern))
    files = names_digest(str(path.relative_to(args.source)) for path in found)
    how: dict[str, Any] = {"camera": args.camera, "pattern": args.pattern, "files": files}
    fill_store(args, make_env_spec(args), found, partial(read_file, args), **how)
    print_action_range(args.out)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
