"""The simulated robot's store: it can stand for one of BAIR's, and is the same however it was recorded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect import bair, pushing
from collect.pool import WorkerPool
from configs import overlay, read_preset
from envs.pushing import Pushing
from tests.collect.conftest import Here
from tests.collect.test_bair import written
from tests.scripts import run_script
from train import prior, tokens, vqvae
from worldmodel.data.store import Store
from worldmodel.data.zarr_format import open_root
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten random episodes, by two processes."""
    out = tmp_path_factory.mktemp("pushing") / "data.zarr"
    flags = f"--out {out} --policy random --num-workers 2 --episodes 10".split()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run_script("collect/pushing.py", flags, WorkerPool)
    assert "of the bare engine's" in said.getvalue()
    assert "10 episodes, 300 frames" in said.getvalue()
    return out


def test_a_store_of_bairs_has_the_same_arrays_and_world(recorded: Path, tmp_path: Path) -> None:
    """Read from a record of BAIR's as published; only where numbers must differ do they."""
    (tmp_path / "bair/train").mkdir(parents=True)
    (tmp_path / "bair/train/traj_0_to_0.tfrecords").write_bytes(written(1))
    bair.main(bair.Args(source=tmp_path / "bair", out=tmp_path / "bair.zarr", num_workers=1, valid=0))
    real, ours = Store(tmp_path / "bair.zarr"), Store(recorded)
    assert real.array_names == ours.array_names
    for name in real.array_names:
        a, b = (open_root(store.path)[0][f"data/{name}"] for store in (real, ours))
        assert (a.dtype, a.shape[1:], a.chunks) == (b.dtype, b.shape[1:], b.chunks), name
    assert real.episode_ends[0] == ours.episode_ends[0] == 30
    same = ("name", "frame_shape", "variables", "classes", "max_episode_steps")
    assert [getattr(real.env_spec, n) for n in same] == [getattr(ours.env_spec, n) for n in same]
    assert (real.env_spec.action.kind, real.env_spec.action.shape) == (
        ours.env_spec.action.kind,
        ours.env_spec.action.shape,
    )
    a, b = real.read_episode(0), ours.read_episode(0)
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(a[name], b[name])
    assert not a["action"][-1].any() and not b["action"][-1].any()


def test_the_papers_configuration_of_bair_trains_on_it(recorded: Path, tmp_path: Path) -> None:
    """Two steps of each model of configs/bair.yaml, fewer and narrower layers apart: one frame and 64 numbers given."""
    preset, shorter = read_preset("bair"), {"steps": 2, "batch_size": 2, "log_every": 1}
    video, gpt = overlay(vqvae.Args(), preset["vqvae"], "vqvae"), overlay(prior.Args(), preset["prior"], "prior")
    narrow = replace(
        video.model,
        stride=(4, 8, 8),
        hidden_channels=16,
        residual_channels=16,
        n_res_blocks=1,
        n_codes=8,
        embedding_dim=8,
    )
    where = {"run": tmp_path, "data": recorded, "device": "cpu", "n_eval_clips": 2}
    vqvae.main(replace(video, **where, model=narrow, trainer=replace(video.trainer, **shorter)))
    tokens.main(tokens.Args(run=tmp_path, data=(recorded,), clip_stride=14, device="cpu"))
    narrow = replace(
        gpt.model, d_model=16, n_heads=2, n_layers=1, d_ff=16, resnet_depth=18, cond_dim=32, local_window=8
    )
    prior.main(replace(gpt, **where, model=narrow, trainer=replace(gpt.trainer, **shorter)))
    saved = read_checkpoint(tmp_path / "prior")
    config, progress = saved.config, saved.progress
    assert progress == {"step": 2}
    assert (
        config["model"]["conditioning"],
        config["model"]["condition_dim"],
        config["model"]["n_cond_frames"],
    ) == ("clip", 64, 1)


def test_the_split_is_of_the_episodes_8_to_1_to_1(recorded: Path) -> None:
    store = Store(recorded)
    assert [len(store.episode_indices(split)) for split in ("train", "valid", "test")] == [8, 1, 1]


class Alone(Here):
    """This process, which is timed as one."""

    def run_everywhere(self, function: Callable[[], Any]) -> list[Any]:
        return [1.0]


def test_another_process_and_a_pause_make_the_same_store(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collect.record.WorkerPool", Alone)
    out = tmp_path / "data.zarr"
    for episodes in (3, 10):
        pushing.main(pushing.Args(out=out, policy="random", episodes=episodes))
    one, other = Store(out), Store(recorded)
    for name in one.array_names:
        np.testing.assert_array_equal(one.read(name, 0, one.n_rows), other.read(name, 0, other.n_rows))


def test_what_was_told_is_what_the_environment_does(recorded: Path) -> None:
    """The first episode, played again from its own actions and seed."""
    episode = Store(recorded).read_episode(0)
    seed = int(np.random.SeedSequence([0, 0]).generate_state(2)[0])
    with contextlib.closing(Pushing()) as env:
        frame, info = env.reset(seed=seed)
        for t in range(29):
            np.testing.assert_array_equal(frame, episode["frames"][t])
            np.testing.assert_allclose(list(info.values()), episode["variables"][t], rtol=1e-6)
            frame, _, _, truncated, info = env.step(episode["action"][t])
            assert truncated == episode["truncated"][t]


def test_exploration_draws_as_bairs_robot_did(recorded: Path) -> None:
    store = Store(recorded)
    actions = store.read("action", 0, store.n_rows)
    assert 0.6 < (actions[:, 2] == 0).mean() < 0.95
    assert set(actions[:, 2:].ravel()) <= {0, 1, 2, 3, 4}
    assert (actions[1:, :2] != actions[:-1, :2]).any(1).all(), "none is held"


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise must be a finite number of at least 0, not -1"):
        pushing.Args(noise=-1)
    with pytest.raises(UserError, match="episodes must be at least 1"):
        pushing.Args(episodes=0)
    with pytest.raises(UserError, match="not a pusher"):
        pushing.main(pushing.Args(policy="health_gathering_supreme", out=tmp_path / "data.zarr"))
