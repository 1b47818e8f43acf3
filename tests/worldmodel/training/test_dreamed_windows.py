"""Dreamed sequences start from what was recorded, and have the outcomes that were recorded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import stages
from train import outcome
from worldmodel.data.clips import RECONSTRUCTION
from worldmodel.data.opening import open_tokens
from worldmodel.models.loading import load_prior, load_vqvae
from worldmodel.training.dreamed_windows import DreamedWindows, draw_windows
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError

CONTEXT, STEPS = 4, 6


def test_windows_begin_anywhere_and_may_reach_over_an_end(toy_run: Path) -> None:
    store = open_tokens(toy_run)
    drawn = draw_windows(store, "train", CONTEXT, CONTEXT + STEPS, 4000, np.random.default_rng(0))
    assert drawn["mask"][:, : CONTEXT + 1].all(), "one step at least is inside the episode"
    inside = drawn["mask"].sum(1)
    assert set(inside) == set(range(CONTEXT + 1, CONTEXT + STEPS + 1))
    assert (drawn["stop"] - drawn["row"] >= inside).all() and (drawn["start"] >= 0).all()
    bounds = {store.episode_bounds(i) for i in store.episode_indices("train")}
    found = set(zip(drawn["row"] - drawn["start"], drawn["stop"], strict=True))
    assert found == bounds
    with pytest.raises(UserError, match="has more than 500 latent frames to dream from"):
        draw_windows(store, "train", 500, 501, 1, np.random.default_rng(0))


@pytest.mark.parametrize("run", ["toy_run", "recurrent_run"])
def test_rows_are_recorded_ones_up_to_the_context_and_dreamed_after_it(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    store, vqvae, prior = open_tokens(folder), load_vqvae(folder / "vqvae"), load_prior(folder / "prior")
    made = [DreamedWindows(vqvae, prior, store, "valid", 70, CONTEXT, STEPS, seed=s).rows for s in (0, 0, 1)]
    rows, again, other = made
    assert all(np.array_equal(rows[name], again[name]) for name in rows)
    assert not np.array_equal(rows["codes"], other["codes"])
    drawn = draw_windows(store, "valid", CONTEXT, CONTEXT + STEPS, 70, np.random.default_rng([0, 1]))
    differ = 0
    for i in range(70):
        n, first = int(rows["mask"][i].sum()), int(drawn["row"][i])
        for name in ("condition", "reward", "done", "variables"):
            np.testing.assert_array_equal(rows[name][i, :n], store.read(name, first, first + n))
        np.testing.assert_array_equal(rows["codes"][i, :CONTEXT], store.read("codes", first, first + CONTEXT))
        differ += (rows["codes"][i, CONTEXT:n] != store.read("codes", first + CONTEXT, first + n)).any()
        if RECONSTRUCTION in store.array_names:
            truth = store.read(RECONSTRUCTION, first, first + CONTEXT)
            assert np.abs(rows["images"][i, :CONTEXT].astype(int) - truth).max() <= 1
            assert rows["images"].shape[1] == CONTEXT + STEPS and rows["images"][i, CONTEXT:].std() > 0
    assert differ > 0
    assert ("images" in rows) == (run == "recurrent_run")


@pytest.mark.parametrize("run", ["toy_run", "recurrent_run"])
def test_an_outcome_model_learns_on_dreams_too(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(run)
    for part in ("tokens.zarr", "vqvae", "prior"):
        shutil.copytree(source / part, tmp_path / part)
    args = stages(tmp_path, recurrent=run == "recurrent_run")[3]
    few = replace(args.trainer, steps=4, log_every=1, eval_every=2, save_every=2)
    args = replace(args, n_dreams=20, dream_steps=6, n_eval_clips=8, trainer=few)
    outcome.main(args)
    assert read_checkpoint(tmp_path / "outcome").config["dreams"][:2] == [20, 6]
    with pytest.raises(UserError, match="dreams"):
        outcome.main(replace(args, n_dreams=0))
    with pytest.raises(
        UserError, match="dreamed sequences have 17 latent frames; n_latent_frames must be at least that"
    ):
        replace(args, dream_steps=9)
    with pytest.raises(UserError, match=r"dreams are half of every batch; trainer\.batch_size must be at least 2"):
        replace(args, trainer=replace(args.trainer, batch_size=1))
    shutil.rmtree(tmp_path / "prior")
    with pytest.raises(UserError, match="has no prior to dream with; train it first, or leave --n-dreams out"):
        outcome.main(replace(args, restart=True))
