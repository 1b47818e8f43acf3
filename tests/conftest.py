"""A toy world that trains in seconds: a bright square on a dark floor, pushed left or right by its actions."""

from __future__ import annotations

import importlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.hub import TOKEN, Hub, hub_server
from tests.tiny import VQVAE_SETTINGS
from train import outcome, prior, tokens, vqvae
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import StoreWriter
from worldmodel.models.prior_config import PriorSettings
from worldmodel.models.vqvae_config import VQVAESettings
from worldmodel.training.trainer_config import TrainerConfig

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

TOY = EnvSpec(
    name="toy",
    frame_shape=(16, 16, 3),
    action=ActionSpec(kind="Discrete", nvec=(3,)),
    variables=("COLUMN",),
    fps=5.0,
    max_episode_steps=40,
)


def toy_episode(rng: np.random.Generator, steps: int = 30) -> dict[str, np.ndarray]:
    """Actions are nothing, left, right by four pixels, round the edge; the episode may end at any step."""
    actions = rng.integers(3, size=steps)
    column = (rng.integers(4) + np.concatenate([[0], np.cumsum(np.array([0, -1, 1])[actions])])) % 4
    frames = np.full((steps + 1, 16, 16, 3), 40, np.uint8)
    for t, c in enumerate(column):
        frames[t, 4:12, c * 4 : c * 4 + 4] = (250, 200, 60)
    ended = np.zeros(steps + 1, bool)
    ended[steps - 1] = rng.random() < 0.5
    return {
        "frames": frames,
        "action": np.append(actions, 0),
        "reward": np.append(np.ones(steps), 0).astype(np.float32),
        "terminated": ended,
        "truncated": np.zeros(steps + 1, bool),
        "variables": column[:, None].astype(np.float32),
    }


def fill(path: Path, episodes: int = 20) -> Path:
    with StoreWriter(path, TOY, {}) as writer:
        for i in range(episodes):
            writer.append(toy_episode(np.random.default_rng(i)))
    return path


def stages(
    run: Path, mode: str = "stream", steps: int = 150, recurrent: bool = False
) -> tuple[vqvae.Args, tokens.Args, prior.Args, outcome.Args]:
    """The arguments of every training stage for a small run on the toy world."""
    wider = {"mode": mode, "hidden_channels": 16, "residual_channels": 16, "n_codes": 16, "embedding_dim": 8}
    past = {"past_frames": 2, "n_frames": 1, "downsample_channels": (16,), "motion_loss_weight": 4.0}
    small = VQVAESettings(**VQVAE_SETTINGS | wider | (past if recurrent else {}))
    gpt = PriorSettings(
        mode=mode, decoding_order="raster" if mode == "paper" else "diagonal", window=4,
        d_model=32, n_heads=2, n_layers=2, d_ff=64, dropout=0.0, image_input=recurrent,
    )  # fmt: skip
    often = {"log_every": 10, "eval_every": 3 * steps, "save_every": 50, "precision": "float32"}  # alike on all hosts
    return (
        vqvae.Args(run=run, model=small, trainer=TrainerConfig(steps=steps, batch_size=8, learning_rate=3e-3, **often)),
        tokens.Args(run=run, n_contexts=4, context_frames=4, clip_stride=8),
        prior.Args(
            run=run,
            actions=True,
            n_latent_frames=8,
            model=gpt,
            trainer=TrainerConfig(steps=3 * steps, batch_size=16, learning_rate=3e-3, **often),
        ),
        outcome.Args(
            run=run,
            n_latent_frames=16,
            hidden_dim=32,
            trainer=TrainerConfig(steps=steps, batch_size=16, learning_rate=3e-3, **often),
        ),
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """A thread for each test that runs, and for each process it starts: threads that wait for each other are slow."""
    torch.set_num_threads(1)


@pytest.fixture
def toy_store(tmp_path: Path) -> Path:
    """A store of 20 toy episodes of 31 frames, as <run>/data.zarr."""
    return fill(tmp_path / "data.zarr")


def pytest_configure(config: pytest.Config) -> None:
    """No test sees a power cut, and waiting for the disk takes a tenth of the time."""
    os.fsync = lambda handle: None


def trained_once(factory: pytest.TempPathFactory, name: str, recurrent: bool) -> Path:
    """A run folder with everything trained on the toy world; processes that test side by side share it."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    run = factory.getbasetemp().parent / name if shared else factory.mktemp(name)
    complete = run.with_suffix(".complete")
    with FileLock(f"{run}.lock"):
        if not complete.exists():
            shutil.rmtree(run, ignore_errors=True)  # of a process that has failed
            fill(run / "data.zarr", 60)
            for stage, args in zip((vqvae, tokens, prior, outcome), stages(run, recurrent=recurrent), strict=True):
                stage.main(args)  # type: ignore[arg-type]
            complete.touch()
    return run


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything trained on the toy world; do not write into it."""
    return trained_once(tmp_path_factory, "toy_run", recurrent=False)


@pytest.fixture(scope="session")
def recurrent_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `toy_run`, with a recurrent VQ-VAE and models that take its reconstructions; do not write into it."""
    return trained_once(tmp_path_factory, "recurrent_run", recurrent=True)


@pytest.fixture
def toy_stages():
    """`stages`, for tests that train something themselves."""
    return stages


@pytest.fixture
def toy_fill():
    """`fill`, for tests that need a store of another size."""
    return fill


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server, which is started once for all tests."""
    from tests.bucket import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, which this process and its children can reach."""
    options = {"endpoint_url": s3_endpoint, "key": "somebody", "secret": "something"}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in options.items():
        monkeypatch.setenv(f"FSSPEC_S3_{name.upper()}", value)
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub of models that this process and its children use as somebody who may write, with an empty cache."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch, hub_server() as server:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(tmp_path / "hf_home"))
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        importlib.reload(constants)  # it reads the environment
        yield server
    importlib.reload(constants)
