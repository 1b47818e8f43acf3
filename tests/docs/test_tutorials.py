"""The code blocks of the README, the quick start and the tutorials, run as a reader would run them, but small.

Every block runs, in the order of the pages, in one folder. Commands run in this process: torch is imported once.
`SMALL` has the flags that are added to a command, `SHORT` what is replaced in Python, `ELSEWHERE` what is not run here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
import urllib.request
from functools import partial
from pathlib import Path

import av
import h5py
import numpy as np
import pytest

from configs import parse
from envs.vector import DreamVectorEnv
from rollout import play
from tests.scripts import run_script

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/tutorials/own_environment.md",
    "docs/tutorials/own_policy.md",
    "docs/tutorials/own_videos.md",
    "docs/tutorials/train_in_a_dream.md",
    "docs/tutorials/plan_in_a_dream.md",
)
FIT = "--trainer.steps 2 --trainer.batch-size 2 --n-eval-clips 2"
SMALL = {
    "collect/gym.py": "--episodes 20 --num-workers 1",
    "collect/video.py": "--num-workers 1",
    "collect/hdf5.py": "--num-workers 1",
    "collect/lerobot.py": "--num-workers 1",
    "collect/minari.py": "--num-workers 1",
    "train/vqvae.py": FIT,
    "train/tokens.py": "--n-contexts 4",
    "train/prior.py": FIT,
    "train/outcome.py": FIT,
    "train/policy.py": "--num-envs 2 --n-steps 4 --total-timesteps 8 --n-epochs 1 --precision float32",
    "rollout/dream.py": "--n-clips 1 --steps 2",
    "rollout/evaluate.py": "--n-clips 2 --n-dreams 1",
    "rollout/evaluate_policy.py": "--episodes 2",
    "rollout/rank.py": "--episodes 2 --policy random cycle:0x1 cycle:0x3",
    "rollout/sample.py": "--n-clips 2 --samples-per-clip 1",
    "rollout/plan.py": "--episodes 2 --policy runs/dreamed --value-policy runs/dreamed --context-frames 2 "
    "--replan-every 32 --cem.n-candidates 2 --cem.n-elite 1 --cem.n-rounds 1 --cem.horizon 32",
}
SHORT = {
    "num_envs=64": "num_envs=2",
    "n_steps=32": "n_steps=4",
    "n_steps=128": "n_steps=4",
    "batch_size=512": "batch_size=8",
    "learn(100_000)": "learn(8)",
    "range(100)": "range(3)",
}
ELSEWHERE = {
    "python collect/rlds.py --source bridge/1.0.0 --image image_0 --state steps/observation/state "
    "--out runs/bridge/data.zarr": "tests/collect/test_rlds.py",
    "make demo": "nine minutes",
    "make test": "this is it",
    ".venv/bin/tensorboard --logdir runs": "a server; tests/train/test_tensorboard.py reads the logs",
    "python train/tokens.py --before-end-fraction 0.7 --split train": "tests/train/test_tokens.py",
    "python train/loop.py --preset health_gathering_loop": "hours; tests/train/test_loop.py",
    "python rollout/plan.py --preset pushing --object 3 --goal 40 20": "its own test, test_visual_foresight.py",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the reader works: videos and recordings of one's own, and nothing else."""
    for i in range(20):
        path = tmp_path / "my_videos" / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"  # type: ignore[union-attr]
            for pixels in np.random.default_rng(i).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))  # type: ignore[union-attr]
            container.mux(stream.encode())  # type: ignore[union-attr]
    shutil.copytree(tmp_path / "my_videos", tmp_path / "my_drives")
    for i in range(20):
        (tmp_path / "my_drives" / f"{i}.csv").write_text("steer,gas\n" + "0.5,1.0\n" * 16)
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for i in range(3):
            file[f"data/demo_{i}/obs/agentview_image"] = np.full((60, 84, 84, 3), i, np.uint8)
            for name, shape in {"actions": (60, 7), "rewards": (60,), "dones": (60,)}.items():
                file[f"data/demo_{i}/{name}"] = np.zeros(shape)
    return tmp_path


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, title and text of each fenced block."""
    found = re.findall(
        r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```', (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    return [(language, title, text.replace("\\\n", " ")) for language, title, text in found]


def run_python(text: str) -> None:
    for long, short in SHORT.items():
        text = text.replace(long, short)
    exec(compile(text, "block", "exec"), {"__name__": "block"})


def run_line(line: str) -> None:
    """A line of a shell: one of our scripts, or a copy."""
    line = line.partition("    #")[0].strip()
    if line in ELSEWHERE or "runs/mine" in line:  # the README's commands are the first tutorial's
        return
    first, script, *rest = shlex.split(line)
    if first == "cp":
        shutil.copy(ROOT / script, rest[0])
        return
    assert first == "python", line
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollout.rank.DreamVectorEnv", partial(DreamVectorEnv, horizon=8))  # whole episodes take minutes
        run_script(script, [*rest, *shlex.split(SMALL[script])])


def run_page(page: str) -> int:
    """How many blocks of a page ran."""
    ran = 0
    for language, title, text in blocks(page):
        if title:
            Path(title).write_text(text)
        elif language == "python":
            run_python(text)
        elif text.startswith(("python ", "make ", "cp ", ".venv")):
            for line in text.splitlines():
                run_line(line)
        else:
            continue
        ran += 1
    return ran


def test_every_block_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    monkeypatch.syspath_prepend(str(folder))
    for page in PAGES:  # the last pages use what the first ones made
        assert run_page(page) >= 2, page
    for name in (
        "try/dreams", "catch/prior", "catch/dreams", "catch/evaluation", "catch2/vqvae", "videos/samples",
        "catch_wander/data.zarr", "catch_follow/data.zarr", "catch_ppo/data.zarr",
        "from_minari/data.zarr", "arm/data.zarr", "drives/data.zarr", "anything/data.zarr", "from_lerobot/data.zarr",
        "dreamed", "dreamed_warm", "plan.json", "rank.json",
    ):  # fmt: skip
        assert (folder / "runs" / name).exists(), name


def test_the_page_to_play_answers() -> None:
    """The command of the page about playing, on a free port."""
    ((_, _, text), *_, (_, _, shown)) = blocks("docs/tutorials/play_a_dream.md")
    assert (text, shown) == ("python rollout/play.py\n", "python rollout/show.py --path runs/demo\n")
    server = play.serve(parse(play.Args, "play", ["--port", "0"]))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state = f"http://127.0.0.1:{server.server_port}/state"
    with urllib.request.urlopen(urllib.request.Request(state, b"{}", {"Content-Type": "application/json"})) as answer:
        assert json.loads(answer.read())["controls"]["keys"]["w"] == [0, 1]
    server.shutdown()
    server.server_close()
