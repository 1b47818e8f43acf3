"""Every script that writes into a run folder holds it for itself: the second one is told in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.runs import make_run
from tests.conftest import fill, stages
from train import export, imitate, outcome, policy, prior, pusher, tokens, tune_hysteresis, vqvae
from worldmodel.data.store import Store
from worldmodel.generation.context import CONTEXTS_FILE
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, codes_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of untrained models, with frames and codes."""
    run = tmp_path_factory.mktemp("run")
    make_run(run, 0)
    fill(run / "data.zarr", 10)
    tokens.main(tokens.Args(run=run, n_contexts=4, context_frames=4))
    return run


def scripts(run: Path) -> dict[str, tuple[Callable[[], Any], Path]]:
    """What each script does, and the folder that it has to itself meanwhile."""
    v, _, p, o = (replace(args, restart=True) for args in stages(run, steps=1))
    small: dict[str, Any] = {"num_envs": 2, "n_steps": 20, "total_timesteps": 40}
    engine = {"scenario": "basic", "reward_shaping": (), "features_dim": 8}
    return {
        "vqvae": (lambda: vqvae.main(v), run / "vqvae"),
        "prior": (lambda: prior.main(p), run / "prior"),
        "outcome": (lambda: outcome.main(o), run / "outcome"),
        "steady": (
            lambda: tune_hysteresis.main(tune_hysteresis.Args(run=run, hysteresis=(), set_hysteresis=0.1)),
            run / "vqvae",
        ),
        "export": (lambda: export.main(export.Args(run=run, out=run / "small")), run / "small/prior"),
        "policy": (lambda: policy.main(policy.Args(out=run / "policy", **small, **engine)), run / "policy"),
        "pusher": (lambda: pusher.main(pusher.Args(out=run / "pusher", **small)), run / "pusher"),
        "imitate": (lambda: imitate.main(imitate.Args(out=run / "imitated")), run / "imitated"),
    }


@pytest.mark.parametrize("script", scripts(Path()))
def test_a_second_trainer_is_told_and_changes_nothing(script: str, run: Path) -> None:
    second, folder = scripts(run)[script]
    with folder_lock(folder):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError, match=rf"{folder} is being written by another process; wait for it, stop it"):
            second()
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_codes_that_another_process_writes_are_not_deleted_by_a_restart(run: Path) -> None:
    before, contexts = len(Store(run / "tokens.zarr").episode_ends), (run / CONTEXTS_FILE).read_bytes()
    (run / f"{CONTEXTS_FILE}.123.part").touch()
    again = tokens.Args(run=run, n_contexts=2, context_frames=4, restart=True)
    with folder_lock(run, "tokens.lock"), pytest.raises(UserError, match=f"{run} is being written by another process"):
        tokens.main(again)
    assert len(Store(run / "tokens.zarr").episode_ends) == before and (run / CONTEXTS_FILE).read_bytes() == contexts
    (run / f"{CONTEXTS_FILE}.123.part").touch()
    tokens.main(again)
    assert (run / CONTEXTS_FILE).read_bytes() != contexts
    assert not list(run.glob("*.part")), "what a killed process left"


def test_choosing_and_exporting_work_where_nobody_else_writes(run: Path) -> None:
    before = codes_digest(run / "vqvae")
    export.main(export.Args(run=run, out=run / "small", contexts=2))
    assert sorted(p.name for p in (run / "small/prior").iterdir()) == [CHECKPOINT_FILE, "config.json", "train.lock"]
    tune_hysteresis.main(tune_hysteresis.Args(run=run, hysteresis=(), set_hysteresis=0.1, episodes=1))
    assert codes_digest(run / "vqvae") == f"{before}+0.1"
