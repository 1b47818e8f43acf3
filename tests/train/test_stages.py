"""The stages of training: what they hand to each other, in both modes, and what they refuse."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs  # noqa: F401 - registers
from tests.conftest import TOY, stages, toy_episode
from train import outcome, prior, tokens, vqvae
from worldmodel.data.env_spec import ActionSpec
from worldmodel.data.prior_dataset import PriorDataset
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.generation.context import Context
from worldmodel.models.loading import load_prior, load_vqvae
from worldmodel.models.prior_config import PriorSettings
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.training import vqvae_stage
from worldmodel.training.outcome_stage import EpisodeWindows
from worldmodel.training.prior_stage import configure
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, read_checkpoint
from worldmodel.utils.errors import UserError

Stages = Callable[..., tuple]


def test_paper_mode_conditions_on_the_actions_of_the_clip(toy_store: Path, toy_stages: Stages) -> None:
    run = toy_store.parent
    v, t, p, _ = toy_stages(run, mode="paper", steps=4)
    vqvae.main(v)
    tokens.main(t)
    prior.main(p)
    model, store = load_prior(run / "prior"), Store(run / "tokens.zarr")
    assert (model.config.conditioning, model.config.condition_dim) == ("clip", 7 * 3)
    assert store.n_rows == 20 * 3 * 8, "clips of 8 that begin at 0, 8 and 16 of 31 frames"
    clips = PriorDataset(model.config, store, "train")
    first = clips.fixed_sample(len(clips))
    episode = Store(run / "data.zarr").read_episode(int(store.episode_indices("train")[0]))
    assert first.condition is not None
    assert first.condition[0].view(7, 3).argmax(1).tolist() == episode["action"][:7].tolist()
    frames = torch.from_numpy(Store(run / "data.zarr").read_episode(0)["frames"][8:16])[None]
    codes = load_vqvae(run / "vqvae").encode(frames)[0].numpy()
    assert np.array_equal(codes, store.read_episode(0)["codes"][8:16])


def test_a_prior_may_leave_the_frames_of_ends_out(toy_run: Path) -> None:
    store, config = Store(toy_run / "tokens.zarr"), load_prior(toy_run / "prior").config
    rows = [e["done"] for e in (store.read_episode(i) for i in store.episode_indices("train"))]
    every = PriorDataset(config, store, "train")
    assert len(every) == sum(len(ended) - 7 for ended in rows)
    without = PriorDataset(config, store, "train", terminal_frames=False)
    assert len(without) == len(every) - sum(ended.any() for ended in rows)
    last = {
        tuple(place) for place in np.stack([every.clips.fixed_sample(len(every))[n] for n in ("episode", "start")], 1)
    }
    kept = {
        tuple(place)
        for place in np.stack([without.clips.fixed_sample(len(without))[n] for n in ("episode", "start")], 1)
    }
    assert all(store.read_episode(episode)["done"][start + 7] for episode, start in last - kept)


def test_without_actions_the_prior_is_unconditional(
    toy_store: Path, toy_stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_store.parent
    v, t, p, _ = toy_stages(run, steps=2)
    vqvae.main(v)
    tokens.main(t)
    capsys.readouterr()
    prior.main(replace(p, actions=False))
    assert read_checkpoint(run / "prior").config["model"]["conditioning"] == "none"
    said = capsys.readouterr().out
    assert "by how often they are used" in said and "actions matter" not in said and "actions have no" not in said


def test_condition_sizes_of_table_9() -> None:
    """15 transitions of 4 actions for HGS, of 21 for Battle2, and for BAIR 16 of 4 numbers."""
    paper = VQVAE(VQVAEConfig(hidden_channels=4, residual_channels=4, n_res_blocks=0, embedding_dim=4))
    args = prior.Args(actions=True, model=PriorSettings())
    assert configure(args, paper, 4).condition_dim == 60
    assert configure(args, paper, 21).condition_dim == 315
    assert configure(replace(args, every_action=True), paper, 4).condition_dim == 64
    with pytest.raises(UserError, match="VQ-VAE is in paper mode, but the prior is in stream mode"):
        configure(prior.Args(), paper, 4)


def test_mistakes_are_told_in_a_sentence_and_nothing_is_lost(
    toy_store: Path, toy_stages: Stages, toy_fill: Callable
) -> None:
    run = toy_store.parent
    v, t, p, _ = toy_stages(run, steps=2)
    with pytest.raises(UserError, match=r"has frames of \(16, 16, 3\), but the VQ-VAE is set to \(32, 32, 3\)"):
        vqvae.main(replace(v, model=replace(v.model, frame_size=(32, 32))))
    toy_fill(run / "few.zarr", 1)
    with pytest.raises(UserError, match="has no episodes in split 'valid'; collect at least"):
        vqvae.main(replace(v, data=run / "few.zarr"))
    with pytest.raises(UserError, match=r"tokens.zarr does not exist; run train/tokens.py --run .* first"):
        prior.main(p)
    vqvae.main(v)
    before = (run / "vqvae" / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(UserError, match=r"holds a run with model.hidden_channels = 16, but 32 was asked for"):
        vqvae.main(replace(v, model=replace(v.model, hidden_channels=32)))
    assert (run / "vqvae" / CHECKPOINT_FILE).read_bytes() == before
    tokens.main(t)
    with pytest.raises(UserError, match="ask for shorter clips"):
        prior.main(replace(p, n_latent_frames=40))
    with pytest.raises(
        UserError, match=r"no episode in split \'valid\' of .*tokens.zarr has more than 31 latent frames; lower --con"
    ):
        tokens.main(replace(t, context_frames=32))
    shutil.rmtree(run / "data.zarr")
    toy_fill(run / "data.zarr", 10)
    with pytest.raises(UserError, match=r"has 20 episodes, .*but .*data.zarr only 10; use --restart to encode"):
        tokens.main(t)
    with pytest.raises(UserError, match="contexts must be at least 1, not 0"):
        replace(t, n_contexts=0)


@pytest.mark.parametrize("variables", ["none", "no array"])
def test_a_store_without_variables(
    variables: str, tmp_path: Path, toy_stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    """An array of no variables is all that a dream needs; without one it is said what will not come of it."""
    with StoreWriter(tmp_path / "data.zarr", replace(TOY, variables=()), {}) as writer:
        for i in range(20):
            episode = toy_episode(np.random.default_rng(i))
            del episode["variables"]
            writer.append(episode | ({"variables": np.zeros((31, 0), np.float32)} if variables == "none" else {}))
    v, t, _, o = toy_stages(tmp_path, steps=2)
    vqvae.main(v)
    tokens.main(t)
    if variables == "none":
        outcome.main(o)
        assert Context.load(tmp_path).variables.shape == (4, 4, 0)
        assert read_checkpoint(tmp_path / "outcome").config["model"]["n_variables"] == 0
    else:
        assert "no contexts for a dream to start from: " in capsys.readouterr().out
        with pytest.raises(
            UserError, match=r"tokens.zarr has no variables, which an outcome model is trained on; record an"
        ):
            outcome.main(o)


def test_sequences_meet_ends_wherever_they_come(toy_run: Path) -> None:
    store = Store(toy_run / "tokens.zarr")
    sequences = EpisodeWindows(store, "train", 16)
    drawn = sequences.sample(np.random.default_rng(0), 4000)
    ended = drawn["done"] & drawn["mask"]
    true_rate = sequences.rows["done"].mean()
    assert ended.sum() / drawn["mask"].sum() == pytest.approx(true_rate, rel=0.3)
    assert (ended.sum(0) > 0).all(), "at every step of a sequence"
    assert drawn["mask"][:, 0].all()
    rows = np.flatnonzero(ended.any(1))
    after = [drawn["mask"][i, ended[i].argmax() + 1 :].any() for i in rows]
    assert not any(after), "nothing is known after an end"


def test_gray_frames_are_trained_on_and_sampled(tmp_path: Path) -> None:
    spec = replace(TOY, frame_shape=(16, 16, 1))
    with StoreWriter(tmp_path / "data.zarr", spec, {}) as writer:
        for i in range(20):
            rows = toy_episode(np.random.default_rng(i))
            writer.append(rows | {"frames": rows["frames"][..., :1]})
    v, t, p, _ = stages(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"set --model.frame-size and --model.channels, or record such frames"):
        vqvae.main(v)
    vqvae.main(replace(v, model=replace(v.model, channels=1)))
    tokens.main(t)
    prior.main(p)
    assert load_prior(tmp_path / "prior").config.cond_frame_shape == (16, 16, 1)


def test_frames_of_one_color_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "data.zarr", TOY, {}) as writer:
        for i in range(20):
            rows = toy_episode(np.random.default_rng(i))
            writer.append(rows | {"frames": np.zeros_like(rows["frames"])})
    with pytest.raises(UserError, match=r"all pixels of .*data.zarr are equal; look at the frames"):
        vqvae.main(stages(tmp_path, steps=2)[0])


def test_a_recurrent_vqvae_learns_from_actions_that_are_never_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row of an episode has no action: a zero, which this space does not have."""
    spec = replace(TOY, action=ActionSpec(kind="Box", low=(1.0,), high=(2.0,)))
    with StoreWriter(tmp_path / "data.zarr", spec, {}) as writer:
        for i in range(20):
            rows = toy_episode(np.random.default_rng(i), steps=4)
            writer.append(rows | {"action": np.float32([[1], [2], [1], [2], [0]])})
    args = replace(stages(tmp_path, steps=1, recurrent=True)[0], n_eval_frames=4)
    vqvae.main(args)
    (scale,) = load_vqvae(tmp_path / "vqvae").config.action_scale
    assert 0 < scale <= 0.5, "the zeros do not count"
    monkeypatch.setattr(vqvae_stage, "condition_scale", lambda *_: (7.0,))
    vqvae.main(replace(args, trainer=replace(args.trainer, steps=2)))
    assert load_vqvae(tmp_path / "vqvae").config.action_scale == (scale,), "a run that continues keeps its own"


@pytest.mark.parametrize("recurrent", [False, True], ids=["per_frame", "recurrent"])
def test_errors_are_scaled_by_the_training_split(toy_store: Path, tmp_path: Path, recurrent: bool) -> None:
    """The episodes of the other splits are black here, so their variance would be zero."""
    store = Store(toy_store)
    bounds, training = store.episode_bounds, set(store.episode_indices("train"))
    with StoreWriter(tmp_path / "dark/data.zarr", TOY, {}) as writer:
        for i in range(20):
            rows = store.read_episode(i)
            writer.append(rows | {"frames": rows["frames"] * (i in training)})
    vqvae.main(stages(tmp_path / "dark", steps=1, recurrent=recurrent)[0])
    pixels = np.concatenate([store.read("frames", *bounds(i)) for i in training]) / 255
    config = load_vqvae(tmp_path / "dark" / "vqvae").config
    assert config.data_variance == pytest.approx(pixels.var(), rel=0.1)


@pytest.mark.parametrize("recurrent", [False, True], ids=["per_frame", "recurrent"])
def test_a_run_that_continues_keeps_its_scale(
    toy_store: Path, monkeypatch: pytest.MonkeyPatch, recurrent: bool
) -> None:
    """Another version of this project may measure the variance in another way."""
    run = toy_store.parent
    args = stages(run, steps=1, recurrent=recurrent)[0]
    vqvae.main(args)
    before = load_vqvae(run / "vqvae").config.data_variance
    monkeypatch.setattr(vqvae_stage, "pixel_variance", lambda clips: 7.0)
    vqvae.main(replace(args, trainer=replace(args.trainer, steps=2)))
    assert load_vqvae(run / "vqvae").config.data_variance == before
    vqvae.main(replace(args, restart=True))
    assert load_vqvae(run / "vqvae").config.data_variance == 7


def test_stages_resume_on_a_store_as_if_nothing_had_happened(toy_store: Path, toy_stages: Stages) -> None:
    """Stopped after each step of both models, and run in one go."""
    run = toy_store.parent
    v, t, p, _ = toy_stages(run, steps=3)
    vqvae.main(v)
    tokens.main(t)
    prior.main(p)
    for part, stage, args in (("vqvae", vqvae, v), ("prior", prior, p)):
        whole = read_checkpoint(run / part)
        one_step = replace(args, trainer=replace(args.trainer, max_minutes=1e-9))
        with pytest.raises(UserError, match="time is up after step 1 of"):
            stage.main(replace(one_step, restart=True))
        for step in range(2, args.trainer.steps):
            with pytest.raises(UserError, match=f"time is up after step {step} of"):
                stage.main(one_step)
        stage.main(one_step)
        resumed = read_checkpoint(run / part)
        assert whole.weights.keys() == resumed.weights.keys()
        assert all(torch.equal(whole.weights[k], resumed.weights[k]) for k in whole.weights)
        assert all(
            torch.equal(v, resumed.optimizer[i][k]) for i, state in whole.optimizer.items() for k, v in state.items()
        )


def test_a_time_stride_holds_the_action(toy_store: Path, toy_stages: Stages) -> None:
    """Two frames to a latent frame: a step of the dream is two of the world."""
    run = toy_store.parent
    v, t, p, o = toy_stages(run, steps=5)
    vqvae.main(replace(v, model=replace(v.model, stride=(2, 4, 4))))
    tokens.main(t)
    store = Store(run / "tokens.zarr")
    assert store.n_rows == 20 * 16, "31 frames make 16 latent frames, the last frame held"
    assert store.read_episode(0)["done"].sum() == Store(run / "data.zarr").read_episode(0)["terminated"].sum()
    prior.main(replace(p, n_latent_frames=6))
    outcome.main(replace(o, n_latent_frames=8))
    env = gym.make("VideoGPTDream-v0", model=run).unwrapped
    assert (env.vector_env.max_steps, env.metadata["render_fps"]) == (20, 2.5)
    env.reset(seed=0)
    given = []
    dreaming = env.vector_env.dream.prior
    dreaming.begin_frame = spy(dreaming.begin_frame, given)
    frame, _, _, _, info = env.step(2)
    assert info["frames"].shape == (2, 16, 16, 3)
    assert np.array_equal(info["frames"][-1], frame)
    assert given[0].tolist() == [[0, 0, 1, 0, 0, 1]]


def spy(function: Callable, given: list) -> Callable:
    """A function that notes its second argument."""

    def noting(cache: object, condition: torch.Tensor, *rest: object) -> object:
        given.append(condition)
        return function(cache, condition, *rest)

    return noting


def test_bits_are_logarithms_to_two(toy_run: Path) -> None:
    """A prior that has learned the toy world needs far less than the 4 bits of a code."""
    store, model = Store(toy_run / "tokens.zarr"), load_prior(toy_run / "prior")
    episode = store.read_episode(int(store.episode_indices("test")[0]))
    codes = torch.from_numpy(episode["codes"].astype(np.int64))[None, :8]
    condition = torch.from_numpy(episode["condition"])[None, :8]
    with torch.no_grad():
        bits = model.loss(codes, condition)[0, 1:].mean().item() / math.log(2)
    assert 0 < bits < 0.5


def test_a_vqvae_begins_with_another_and_a_codebook_of_its_own(
    toy_run: Path, toy_stages: Stages, toy_store: Path
) -> None:
    args = toy_stages(toy_store.parent)[0]
    still = replace(args.trainer, steps=1, learning_rate=0.0, eval_every=1)
    args = replace(
        args, model=replace(args.model, n_codebooks=2, embedding_dim=4), trainer=still, init_from=toy_run / "vqvae"
    )
    vqvae.main(args)
    old, new = load_vqvae(toy_run / "vqvae"), load_vqvae(args.run / "vqvae")
    assert torch.equal(old.post_vq_conv.weight, new.post_vq_conv.weight), "at a rate of 0 it is the other one still"
    assert new.quantizer.embedding.shape == (2, 16, 4)
    assert new.quantizer.initialized
    with pytest.raises(UserError, match="init_from"):  # going on without it would be another run
        vqvae.main(replace(args, init_from=None))
    with pytest.raises(UserError, match="only n_codes may differ, and n_codebooks if"):
        vqvae.main(replace(args, model=replace(args.model, hidden_channels=32), restart=True))
