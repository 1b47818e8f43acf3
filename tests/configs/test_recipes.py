"""`make ucf101` and `make tgif`: the commands that they say, one after the other, on videos as published but tiny."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.scripts import run_script
from worldmodel.utils.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
TINY = """
collect: {size: 16, num_workers: 1, min_frames: 8}
vqvae:
  model:
    mode: paper
    n_frames: 8
    frame_size: [16, 16]
    stride: [2, 4, 4]
    hidden_channels: 8
    residual_channels: 8
    n_res_blocks: 1
    n_codes: 8
    embedding_dim: 4
  trainer: {steps: 2, batch_size: 2}
tokens: {clip_stride: 4}
prior:
  model: {mode: paper, decoding_order: raster, d_model: 16, n_heads: 2, n_layers: 1, d_ff: 16}
  trainer: {steps: 2, batch_size: 2}
sample: {n_clips: 2, samples_per_clip: 1}
"""


def film(i: int, frames: int = 10) -> np.ndarray:
    """Noise, (frames, 16, 16, 3)."""
    return np.random.default_rng(i).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)


def write_avi(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"  # type: ignore[union-attr]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))  # type: ignore[union-attr]
        container.mux(stream.encode())  # type: ignore[union-attr]


def ucf101(folder: Path) -> None:
    """Two classes of six groups, of which the first is for testing."""
    videos = [(c, f"{c}/v_{c}_g{group:02}_c01.avi", group) for c in ("YoYo", "Fencing") for group in range(1, 7)]
    for i, (_, name, _) in enumerate(videos):
        write_avi(folder / "UCF-101" / name, film(i))
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 YoYo\n2 Fencing\n")
    number = {"YoYo": 1, "Fencing": 2}
    (lists / "trainlist01.txt").write_text("".join(f"{name} {number[c]}\n" for c, name, g in videos if g > 1))
    (lists / "testlist01.txt").write_text("".join(f"{name}\n" for _, name, g in videos if g == 1))


def tgif(folder: Path) -> None:
    (folder / "gifs").mkdir(parents=True)
    rows = [f"https://38.media.tumblr.com/x/tumblr_{i}_500.gif\tsentence {i}\n" for i in range(40)]
    (folder / "tgif-v1.0.tsv").write_text("".join(rows))
    for i in range(40):
        first, *rest = [Image.fromarray(frame) for frame in film(i)]
        first.save(folder / "gifs" / f"tumblr_{i}_500.gif", save_all=True, append_images=rest, duration=100)


@pytest.mark.parametrize(("target", "write", "classes"), [("ucf101", ucf101, 2), ("tgif", tgif, 0)])
def test_one_command_reads_trains_and_samples(
    target: str, write: object, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "as published")  # type: ignore[operator]
    (tmp_path / "tiny.yaml").write_text(TINY)
    settings = [
        f"SOURCE={tmp_path / 'as published'}",
        f"PRESET={tmp_path / 'tiny.yaml'}",
        "PRIOR=--classes" if classes else "PRIOR=",
    ]
    said = subprocess.run(
        ["make", "-n", target, *settings], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = [shlex.split(line) for line in said.splitlines() if "/python " in line and " --preset " in line]
    assert [Path(c[1]).stem for c in commands] == [target, "vqvae", "tokens", "prior", "sample"]
    monkeypatch.chdir(tmp_path)
    for _, script, *flags in commands:
        run_script(script, flags)
    run, name = tmp_path / "runs" / f"{target}_tiny", "prior_classes" if classes else "prior"
    config = read_checkpoint(run / name).config["model"]
    assert (config["n_classes"], config["condition_dim"]) == (classes, classes)
    assert np.load(run / "samples" / "samples.npy").shape == (2, 8, 16, 16, 3)
    assert json.loads((run / "samples" / "samples.json").read_text())["conditioning frames"] == "none"
