"""The blocks of the page about other libraries, each in a process of its own, because some libraries patch others.

What is not installed is skipped. `make test` installs what the extras `all` and `dev` have.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.hub import Hub
from train import push

ROOT = Path(__file__).parents[2]
NEEDS = {
    "Notebooks": "gymnasium",
    "sb3-contrib": "sb3_contrib",
    "CleanRL": "gymnasium",
    "TorchRL": "torchrl",
    "RLlib": "ray",
    "Weights & Biases": "wandb",
    "MLflow": "mlflow",
    "Hugging Face Hub": "huggingface_hub",
}
SMALL = {
    "num_envs=64": "num_envs=2",
    "horizon=100": "horizon=4",
    '"horizon": 100': '"horizon": 4',
    "n_steps=32, batch_size=512": "n_steps=4, batch_size=8, n_epochs=1",
    "buffer_size=10_000": "buffer_size=100, learning_starts=4",
    "learn(100_000)": "learn(8)",
    "range(500)": "range(5)",
    "rollout(100": "rollout(5",
    "train_batch_size_per_learner=1000, minibatch_size=100": (
        "train_batch_size_per_learner=16, minibatch_size=8, num_epochs=1"
    ),
    'vqvae.Args(run=Path("runs/mine"))': 'stages(Path("runs/mine"), steps=10)[0]',
    "from train import vqvae": "from train import vqvae; from tests.conftest import stages",
    "owner/name": "somebody/toy",
}


def sections() -> dict[str, str]:
    """Heading -> its Python."""
    text = (ROOT / "docs" / "tutorials" / "works_with.md").read_text()
    parts = [part.partition("\n") for part in text.split("\n## ")[1:]]
    return {heading: re.findall(r"^```python\n(.*?)^```", body, re.M | re.S)[0] for heading, _, body in parts}


def run_block(heading: str, folder: Path, end: str = "") -> str:
    """What the block of a section prints, run small in a folder, with a few more lines at its end."""
    if not find_spec(NEEDS[heading]):
        pytest.skip(f"{NEEDS[heading]} is not installed")
    code = sections()[heading]
    for long, short in SMALL.items():
        code = code.replace(long, short)
    env = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-c", code + end]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_section_has_a_test() -> None:
    assert sections().keys() == NEEDS.keys()
    used = [long for long in SMALL if any(long in code for code in sections().values())]
    assert used == list(SMALL)


def test_a_picture_in_a_notebook(tmp_path: Path) -> None:
    end = "picture = env.render(); print(picture.shape, picture._repr_png_()[1:4], picture.mean(0)._repr_png_())"
    assert run_block("Notebooks", tmp_path, end) == "(256, 256, 3) b'PNG' None\n"


def test_sb3_contrib(tmp_path: Path) -> None:
    assert run_block("sb3-contrib", tmp_path, "print(env.num_envs, len(env.get_attr('max_steps')))") == "2 2\n"


def test_cleanrl(tmp_path: Path) -> None:
    lines = run_block("CleanRL", tmp_path).splitlines()
    assert [line.partition(",")[0] for line in lines] == ["global_step=3"] * 2


def test_torchrl(tmp_path: Path) -> None:
    end = 'print(tuple(batch["next", "observation"].shape), int(batch["next", "truncated"].sum()))'
    assert run_block("TorchRL", tmp_path, end).splitlines()[-1] == "(2, 5, 64, 64, 3) 2"


def test_rllib(tmp_path: Path) -> None:
    assert float(run_block("RLlib", tmp_path).splitlines()[-1]) > 0


def test_wandb(tmp_path: Path, toy_fill: Callable) -> None:
    toy_fill(tmp_path / "runs" / "mine" / "data.zarr")
    run_block("Weights & Biases", tmp_path)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert all(name in log.read_bytes() for name in (b"train/loss", b"held_out/psnr"))


def test_mlflow(tmp_path: Path, toy_fill: Callable) -> None:
    """The curves there are those of TensorBoard."""
    toy_fill(tmp_path / "runs" / "mine" / "data.zarr")
    end = """
run, = mlflow.search_runs(output_format="list")
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
print([(point.step, point.value) for point in history])
"""
    said = run_block("MLflow", tmp_path, end).splitlines()[-1]
    events = EventAccumulator(str(tmp_path / "runs" / "mine" / "vqvae" / "log"))
    events.Reload()
    assert said == str([(point.step, point.value) for point in events.Scalars("train/loss")])


def test_hub(tmp_path: Path, hub: Hub) -> None:
    push.main(push.Args(run=ROOT / "worldmodel" / "pretrained" / "take_cover", repo="somebody/toy"))
    assert run_block("Hugging Face Hub", tmp_path, "print(frame.shape)") == "(64, 64, 3)\n"
