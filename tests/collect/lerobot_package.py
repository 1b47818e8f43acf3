"""Reads or writes a dataset with Hugging Face's own lerobot package; run by test_lerobot_package.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

TOP, SIDE, STATE, ACTION = "observation.images.top", "observation.images.side", "observation.state", "action"
N_EPISODES, LENGTH, SIZE = 3, 12, 64


def read(root: Path, out: Path) -> None:
    """Every row of the dataset, into an .npz file."""
    data = LeRobotDataset("local/toy", root=root, video_backend="pyav")
    camera, rows = data.meta.camera_keys[0], [data[i] for i in range(data.num_frames)]
    names = set(rows[0]) - {camera, "task"}
    columns = {name: np.stack([np.asarray(row[name]).ravel() for row in rows]) for name in names}
    pixels = np.stack([row[camera].movedim(0, -1).numpy() for row in rows])
    np.savez(out, **columns | {"frames": (255 * pixels).round().astype(np.uint8)})


def write(root: Path) -> None:
    """A dataset of two cameras. In the first, a square moves to the right; in the second, it moves down."""
    two = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    pictures = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    features = {TOP: pictures, SIDE: pictures, STATE: two, ACTION: two}
    data = LeRobotDataset.create("local/made", fps=10, features=features, root=root, use_videos=True)
    writes_3 = hasattr(data, "finalize")  # releases without it write version 2
    for i in range(N_EPISODES):
        for t in range(LENGTH):
            picture = np.full((SIZE, SIZE, 3), 40, np.uint8)
            picture[20:40, 4 * t : 4 * t + 16] = 200
            values = {STATE: np.float32([i, t]), ACTION: np.float32([t / 10, -i])}
            row = {TOP: picture, SIDE: picture.swapaxes(0, 1).copy(), **values}
            if writes_3:
                data.add_frame({"task": "push", **row})
            else:
                data.add_frame(row, task="push")
        data.save_episode()
    if writes_3:
        data.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*map(Path, sys.argv[2:]))
