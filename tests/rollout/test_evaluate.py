"""The evaluation of the toy world, where the answer is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from rollout import dream, evaluate, heldout
from worldmodel.generation.dream import Dream
from worldmodel.utils.checkpoint import save_checkpoint
from worldmodel.utils.errors import UserError


@pytest.fixture(scope="module", params=["toy_run", "recurrent_run"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    return folder


def test_the_table_tells_true_actions_from_shuffled_ones(run: Path, capsys: pytest.CaptureFixture) -> None:
    args = evaluate.Args(run=run, n_clips=12, context_frames=4, steps_ahead=(1, 5, 10), n_dreams=2)
    written = evaluate.main(args)
    printed = capsys.readouterr().out
    result = json.loads((run / "evaluation" / "results.json").read_text())
    bits = result["bits_per_dim"]
    assert bits["true actions"]["high"] < bits["shuffled actions"]["low"]
    for figure, sign in (("psnr", 1), ("nmse", -1)):
        assert len(result[figure]["true actions"]) == 3
        assert all(sign * d["mean"] > 0 for d in result["difference"][figure])
        true, copied = result[figure]["true actions"][0], result[figure]["copy last frame"][0]
        assert sign * (true["mean"] - copied["mean"]) > 0, "the square moves two steps in three"
    nmse = result["nmse"]
    for ratio, true, copied in zip(
        result["error_over_copy"], nmse["true actions"], nmse["copy last frame"], strict=True
    ):
        assert ratio["mean"] == pytest.approx(true["mean"] / copied["mean"], rel=1e-3)
        assert ratio["high"] < 1
    assert result["protocol"]["steps_ahead"] == [1, 5, 10]
    assert f"{bits['true actions']['mean']:.3f} [" in printed
    assert "VideoGPTDream-v0" in written.next
    better = "the dream is better than repeating the last frame"
    for good in (better, "the dream follows its actions", "what moves stays visible"):
        assert f"{run}: {good}" in printed
    assert all(0.8 < ratio["mean"] < 1.2 for ratio in result["moving_pixels"]["reconstruction"])
    assert (run / "evaluation" / "results.txt").read_text().strip() in printed


def test_held_out_frames_are_those_of_the_codes(run: Path) -> None:
    model = Dream.load(run)
    heldout_clips = heldout.load_heldout(model, run, None, "test", 4, 10)
    decoded = heldout.reconstructions(model, heldout_clips)
    assert np.abs(decoded.astype(int) - heldout_clips.frames).mean() < 10
    encoded = model.env_spec.action.encode(heldout_clips.actions)[:, :-1]
    assert np.array_equal(encoded, heldout_clips.condition[:, 1:].numpy()), "the action at a frame leads into the next"


def test_shuffling_gives_nobody_its_own_actions() -> None:
    episodes = np.repeat(np.arange(5), 4)
    order = heldout.other_episode_order(episodes, seed=0)
    assert sorted(order) == list(range(20))
    assert (episodes[order] != episodes).all()
    assert len({tuple(heldout.other_episode_order(episodes, seed)) for seed in range(8)}) > 1


def test_pictures_are_written(run: Path) -> None:
    dream.main(dream.Args(run=run, n_clips=2, context_frames=4, steps=8))
    gif = Image.open(run / "dreams" / "dream.gif")
    assert gif.n_frames == 12  # type: ignore[attr-defined]
    assert gif.size == (3 * 3 * 16, 2 * 3 * 16 + 14)
    strip = Image.open(run / "dreams" / "strip.png")
    assert strip.size == (9 * 32, 6 * 32)


def test_what_cannot_dream_is_sent_to_the_papers_metrics(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "prior", nn.Linear(1, 1), {"model": {"mode": "paper"}}, {})
    with pytest.raises(UserError, match=r"paper mode, .* python rollout/fvd.py --run"):
        evaluate.main(evaluate.Args(run=tmp_path))
