"""Samples under classes, actions and conditioning frames, copied or drawn anew, beside a frame held still."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rollout import divergence, heldout, sample
from rollout.heldout import RealClips
from rollout.sample import scores
from tests.conftest import stages
from train import prior, tokens, vqvae
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.prior_dataset import PriorBatch, PriorDataset
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.generation.sampling import SamplingConfig
from worldmodel.models.loading import load_prior
from worldmodel.utils.errors import UserError

NAMES = ("still", "moving")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on squares that stand still or move, of whose prior class and first frame are the condition."""
    run = tmp_path_factory.mktemp("classes")
    with StoreWriter(run / "data.zarr", EnvSpec(name="squares", frame_shape=(16, 16, 3), classes=NAMES), {}) as writer:
        for i in range(40):
            frames = np.full((8, 16, 16, 3), 40, np.uint8)
            for t in range(8):
                column = (i // 2 + t * (i % 2)) % 4 * 4
                frames[t, 4:12, column : column + 4] = (250, 200, 60)
            writer.append({"frames": frames, "label": np.full(8, i % 2)})
    v, t, p, _ = stages(run, mode="paper", steps=120)
    vqvae.main(v)
    tokens.main(t)
    model = replace(p.model, n_cond_frames=1, resnet_depth=18, cond_dim=16)
    trainer = replace(p.trainer, steps=350, batch_size=8, save_every=350)
    prior.main(replace(p, actions=False, classes=True, model=model, trainer=trainer))
    return run


def test_a_prior_of_classes_and_frames_samples_both_classes(classes: Path, capsys: pytest.CaptureFixture) -> None:
    """The same luck under another class gives another video."""
    args = sample.Args(run=classes, n_clips=4, samples_per_clip=2, split="train")
    sample.main(args)
    said = capsys.readouterr().out
    assert "1 frames given" in said and "nearer to the real frames than the last given frame" in said
    told = json.loads((classes / "samples" / "samples.json").read_text())
    assert told["conditioning frames"] == "regenerated"
    assert set(told["nmse"]) == {"mean of samples", "best of samples", "last given frame, held"}
    assert len(told["psnr"]["mean of samples"]) == 7
    drawn = {}
    for kind in NAMES:
        sample.main(replace(args, class_name=kind))
        drawn[kind] = np.load(classes / "samples" / "samples.npy")
    assert not np.array_equal(drawn["still"], drawn["moving"])
    assert {f.name for f in (classes / "samples").iterdir()} == {
        "samples.gif", "samples.png", "samples.npy", "samples.json"
    }  # fmt: skip


def test_the_class_tells_the_prior_how_squares_move(classes: Path) -> None:
    """Clips are much less likely under the other class."""
    model = load_prior(classes / "prior")
    tokens, data = Store(classes / "tokens.zarr"), Store(classes / "data.zarr")
    batch = PriorDataset(model.config, tokens, "train", data).fixed_sample(16)
    assert batch.condition is not None
    assert batch.cond_frames is not None
    with torch.no_grad():
        features = model.encode_cond_frames(batch.cond_frames)
        true, false = (model.loss(batch.codes, c, features).mean() for c in (batch.condition, 1 - batch.condition))
    assert false > 1.3 * true
    truth = heldout.real_clips(classes, model, 1, 16, "train")
    moves = (truth.frames[:, 0] != truth.frames[:, 1]).any((1, 2, 3))
    assert moves.tolist() == batch.condition.argmax(1).bool().tolist(), "the label is that of the clip"
    assert np.array_equal(truth.frames[:, :1], batch.cond_frames.numpy())


def test_conditioning_frames_are_copied_if_that_is_asked_for(classes: Path) -> None:
    vqvae, prior = heldout.load_models(classes, "prior", "cpu")
    truth = heldout.real_clips(classes, prior, 1, 4, "train")
    real = truth.frames
    copied, drawn = (
        heldout.sample_videos(vqvae, prior, truth.batch, 0, copy_cond_frames=copy, batch_size=3)
        for copy in (True, False)
    )
    assert np.array_equal(copied[:, 0], real[:, 0])
    assert not np.array_equal(drawn[:, 0], real[:, 0])
    assert np.array_equal(copied[:, 1:], drawn[:, 1:])


def test_clips_of_one_frame_diverge_under_different_conditions(
    classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the paper's samples of BAIR show; here the class says how a square moves."""
    args = divergence.Args(run=classes, split="train", n_starts=12, steps=7, steps_ahead=(1, 7), n_shown=1)
    args = replace(args, sampling=SamplingConfig(temperature=0))  # so small a prior draws even the given frame loosely
    divergence.main(args)
    assert "different actions lead to different futures" in capsys.readouterr().out
    told = json.loads((classes / "evaluation" / "divergence.json").read_text())
    same, other = (max(at["mean"] for at in told[name]) for name in ("same actions", "different actions"))
    assert same == 0
    assert other > 0.05, "at 1 or 7 steps ahead; other real episodes are 0.1 and 0.175 apart"
    with pytest.raises(UserError, match="this prior samples 7 frames after the given ones, not 15; lower --steps"):
        divergence.main(replace(args, steps=15))


def test_samples_depend_on_the_seed_alone(classes: Path) -> None:
    draw = heldout.make_sampler(classes, 3, 1, "cpu", 2, "train")
    first, again, other = (draw(seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mistakes_are_told_in_a_sentence(classes: Path, toy_run: Path) -> None:
    args = sample.Args(run=classes, n_clips=4, samples_per_clip=1, split="train")
    with pytest.raises(UserError, match="has no class 'flying'; choose one of still, moving"):
        sample.main(replace(args, class_name="flying"))
    with pytest.raises(UserError, match="encodes whole clips"):
        sample.main(replace(args, context_frames=2))
    with pytest.raises(UserError, match="has no conditioning frames to copy"):
        sample.main(sample.Args(run=toy_run, n_clips=2, samples_per_clip=1, copy_cond_frames=True))
    with pytest.raises(UserError, match="has 1 conditioning frames, but the protocol gives 3"):
        heldout.make_sampler(classes, 2, 3, "cpu", 2)
    with pytest.raises(UserError, match="has 1 conditioning frames, but the protocol gives 0"):
        heldout.make_sampler(classes, 2, 0, "cpu", 2)
    with pytest.raises(UserError, match="so 8 given ones leave nothing to sample; lower --context-frames"):
        sample.main(sample.Args(run=toy_run, n_clips=2, samples_per_clip=1, context_frames=8))
    config = load_prior(classes / "prior").config
    with pytest.raises(UserError, match="has no label; collect data that has it"):
        PriorDataset(config, Store(toy_run / "tokens.zarr"), "train")


def test_a_stream_continues_true_codes_under_true_actions(toy_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(toy_run, tmp_path / "run"))
    before = {p: p.stat().st_mtime for p in run.rglob("*") if p.is_file()}
    videos, real = heldout.make_sampler(run, 6, 2, "cpu", 4)(0)
    assert videos.shape == real.shape == (6, 8, 16, 16, 3)
    assert np.abs(videos[:, 2:].astype(int) - real[:, 2:]).mean() < 15, "the actions say where the square goes"
    assert before == {p: p.stat().st_mtime for p in run.rglob("*") if p.is_file()}


def test_frames_of_other_data_are_refused(toy_run: Path, tmp_path: Path) -> None:
    prior = heldout.load_models(toy_run, "prior", "cpu")[1]
    with StoreWriter(tmp_path / "other.zarr", Store(toy_run / "data.zarr").env_spec, {"seed": 99}) as writer:
        writer.append(Store(toy_run / "data.zarr").read_episode(0))
    with pytest.raises(UserError, match=r"was encoded from other frames than those of .*; give --data the store"):
        heldout.real_clips(toy_run, prior, 1, 4, "test", tmp_path / "other.zarr")


def test_given_frames_are_encoded_without_what_came_before(toy_run: Path) -> None:
    """The codes of the store go on from the episode's earlier frames, those of a sample from nothing."""
    vqvae, prior = heldout.load_models(toy_run, "prior", "cpu")
    truth = heldout.real_clips(toy_run, prior, 1, 12, "test")
    codes = heldout.encode_given(vqvae, truth, 2).codes
    with torch.no_grad():
        assert torch.equal(codes, vqvae.encode(torch.from_numpy(truth.frames[:, :2])))
    assert not torch.equal(codes, truth.batch.codes[:, :2])
    assert heldout.encode_given(vqvae, truth, 0) is truth.batch


def test_scores_by_hand() -> None:
    """Two samples, one of them right: the best is perfect, the mean half way, and a frame held still is off by 10."""
    frames = np.zeros((2, 3, 16, 16, 3), np.uint8)
    frames[:, 1:] = 10
    samples = np.stack([frames, np.full_like(frames, 30)])
    result = scores(RealClips(PriorBatch(None, None, None), frames, np.arange(2)), samples, 1, variance=(10 / 255) ** 2)  # type: ignore[arg-type]
    nmse = {row: [m.mean for m in means] for row, means in result["nmse"].items()}
    assert nmse["best of samples"] == pytest.approx([0, 0])
    assert nmse["mean of samples"] == pytest.approx([2, 2])
    assert nmse["last given frame, held"] == pytest.approx([1, 1])
