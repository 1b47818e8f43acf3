"""The lerobot package of Hugging Face reads what we export, and we import what it writes.

lerobot needs an older torch than this project, so it has a Python of its own:

    python3.11 -m venv .venv-lerobot && .venv-lerobot/bin/pip install lerobot==0.4.4
    LEROBOT_PYTHON=.venv-lerobot/bin/python python -m pytest tests/collect/test_lerobot_package.py

lerobot 0.3.3 writes version 2 and cannot read version 3. With it, add `-k writes`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from collect import lerobot
from worldmodel.data.store import Store

SCRIPT = Path(__file__).with_name("lerobot_package.py")
PYTHON = os.environ.get("LEROBOT_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="LEROBOT_PYTHON names no Python that has the package lerobot")


def in_lerobot(*args: str | Path) -> None:
    subprocess.run([Path(PYTHON).absolute(), SCRIPT, *args], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


@pytest.mark.parametrize(("pictures", "most"), [("png", 0), ("mp4", 30)])
def test_lerobot_reads_what_is_exported(toy_store: Path, tmp_path: Path, pictures: str, most: int) -> None:
    lerobot.main(lerobot.Args(export=str(toy_store), dataset=tmp_path / "toy", pictures=pictures))  # type: ignore[arg-type]
    in_lerobot("read", tmp_path / "toy", tmp_path / "rows.npz")
    rows, store, at = np.load(tmp_path / "rows.npz"), Store(toy_store), 0
    for i in range(len(store.episode_indices())):
        truth = store.read_episode(i)
        here = slice(at, at := at + len(truth["frames"]))
        assert (rows["episode_index"][here] == i).all()
        assert np.array_equal(rows["observation.state"][here], truth["variables"])
        assert np.array_equal(rows["action"][here][:-1, 0], truth["action"][:-1])
        assert np.array_equal(rows["next.reward"][here][:-1, 0], truth["reward"][:-1])
        assert np.array_equal(rows["next.done"][here][:-1, 0], (truth["terminated"] | truth["truncated"])[:-1])
        assert np.abs(rows["frames"][here].astype(int) - truth["frames"]).max() <= most
    assert at == len(rows["frames"])


@pytest.mark.parametrize("cameras", [("top",), ("side",), ("top", "side")])
def test_what_lerobot_writes_is_read(tmp_path: Path, cameras: tuple[str, ...]) -> None:
    in_lerobot("write", tmp_path / "made")
    out = str(tmp_path / "back.zarr")
    lerobot.main(lerobot.Args(source=tmp_path / "made", camera=cameras, out=out, size=64))  # type: ignore[arg-type]
    store, t = Store(out), np.arange(12, dtype=np.float32)
    assert len(store.episode_indices()) == 3
    for i in range(3):
        rows = store.read_episode(i)
        assert np.array_equal(rows["variables"], np.stack([np.full(12, i), t], 1))
        actions = np.stack([t / np.float32(10), np.full(12, -i, np.float32)], 1)
        assert np.array_equal(rows["action"][:-1], actions[:-1])
        for camera, frames in zip(cameras, np.split(rows["frames"], len(cameras), axis=2), strict=True):
            centers = [np.argwhere(frame[..., 0] > 120).mean(0) for frame in frames]
            truth = [(29.5, 4 * k + 7.5)[:: 1 if camera == "top" else -1] for k in range(12)]
            assert np.allclose(centers, truth, atol=0.5), camera
