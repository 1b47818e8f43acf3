"""Hysteresis of a trained VQ-VAE: its figures by hand, and what choosing one changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train import tokens, tune_hysteresis, vqvae
from worldmodel.data.store import Store
from worldmodel.models.loading import load_vqvae
from worldmodel.utils.checkpoint import read_checkpoint, weights_digest
from worldmodel.utils.errors import UserError

Stages = Callable[..., tuple]


def test_places_move_by_their_largest_change() -> None:
    frames = np.full((4, 4, 4, 1), 100, np.uint8)
    frames[2, 3, 0] = 90  # the second latent frame, lower left
    frames[3, 0, 3] = 130
    assert tune_hysteresis.max_change(frames, (2, 2, 2)).tolist() == [[[0, 30], [10, 0]]]


def test_entropy_of_a_code_given_the_one_before() -> None:
    before = np.array([0, 0, 0, 0, 7, 7, 7, 7], np.uint16)
    assert tune_hysteresis.conditional_entropy(before, before) == 0
    assert tune_hysteresis.conditional_entropy(before, np.array([0, 0, 1, 1, 7, 7, 7, 7], np.uint16)) == pytest.approx(
        0.5
    )
    assert tune_hysteresis.conditional_entropy(before, np.array([0, 1, 2, 3, 0, 1, 2, 3], np.uint16)) == pytest.approx(
        2
    )


def test_choosing_changes_the_config_and_the_codes_alone(
    tmp_path: Path, toy_store: Path, toy_stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    first, then, *_ = toy_stages(tmp_path, steps=20)
    vqvae.main(first)
    before, made = read_checkpoint(tmp_path / "vqvae"), weights_digest(tmp_path / "vqvae")
    tune_hysteresis.main(tune_hysteresis.Args(run=tmp_path, hysteresis=(0, 0.5), episodes=2, set_hysteresis=0.5))
    rows = json.loads((tmp_path / "hysteresis.json").read_text())["rows"]
    assert rows["0.5"]["all"] > rows["0"]["all"] and rows["0.5"]["bits"] <= rows["0"]["bits"]
    assert "hysteresis of 0.5" in capsys.readouterr().out
    tune_hysteresis.main(tune_hysteresis.Args(run=tmp_path, hysteresis=(), episodes=2, set_hysteresis=0.5))
    assert json.loads((tmp_path / "hysteresis.json").read_text())["rows"] == rows, "kept"
    assert load_vqvae(tmp_path / "vqvae").config.hysteresis == 0.5
    assert weights_digest(tmp_path / "vqvae") == made and read_checkpoint(tmp_path / "vqvae").progress == {"step": 20}
    after = read_checkpoint(tmp_path / "vqvae")
    assert after.optimizer.keys() == before.optimizer.keys() and len(after.optimizer) > 0
    tokens.main(then)
    codes = Store(tmp_path / "tokens.zarr")
    valid = [codes.read_episode(i)["codes"] for i in codes.episode_indices("valid")[:2]]
    kept = np.concatenate([(episode[1:] == episode[:-1]).ravel() for episode in valid])
    assert kept.mean() == pytest.approx(rows["0.5"]["all"], abs=1e-3)


def test_what_cannot_be_is_told_in_a_sentence(tmp_path: Path, toy_store: Path, toy_stages: Stages) -> None:
    with pytest.raises(UserError, match=r"set_hysteresis must be a finite number of at least 0, not -0\.1"):
        tune_hysteresis.Args(set_hysteresis=-0.1)
    with pytest.raises(UserError, match="nothing to measure and nothing to set; give --hysteresis or --set-hysteresis"):
        tune_hysteresis.Args(hysteresis=())
    vqvae.main(toy_stages(tmp_path, "paper", steps=1)[0])
    with pytest.raises(UserError, match="stream-mode"):
        tune_hysteresis.main(tune_hysteresis.Args(run=tmp_path))
