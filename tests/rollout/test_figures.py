"""The figures of a dream, on the toy world: what they say of a model that is known to be good, or to be bad."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import rollout.benchmark as benchmark
import rollout.controllability as control
import rollout.divergence as diverge
import rollout.evaluate_outcome as outcome
import rollout.rank as rank
from envs.dream import DreamEnv
from envs.policies import load_policy, save_policy
from rollout import long_horizon
from rollout.planning.cem import CEMConfig, cross_entropy_method
from rollout.planning.terminal_value import TerminalValue, survival_value
from train import export
from worldmodel.data.clips import n_given_rows
from worldmodel.data.opening import open_store
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(toy_run, tmp_path / "run"))


@pytest.fixture(params=["toy_run", "recurrent_run"])
def each_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run with a VQ-VAE of the paper, and of one with a recurrent VQ-VAE."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "run"))


def test_controllability_of_an_obedient_and_of_a_deaf_dream(run: Path) -> None:
    args = control.Args(run=run, n_clips=12, context_frames=4, steps=4, train_steps=60)
    dream, store = Dream.load(run), open_store(run / "data.zarr")
    heldout_clips = control.load_heldout(dream, run, None, "test", 12, 8)
    reader = control.train_classifier(store, args.train_steps, args.seed)
    good = control.measure(args, dream, heldout_clips, reader)
    assert good["inverse_dynamics"]["real frames"].mean > 0.95
    assert good["ratio"]["dreams, random actions"].mean > 0.9
    assert good["delta_psnr"].low > 1
    for norm in dream.prior.modules():
        if hasattr(norm, "affine"):
            torch.nn.init.zeros_(norm.affine.weight)  # the actions no longer reach the prior
    deaf = control.measure(args, dream, heldout_clips, reader)
    assert deaf["ratio"]["dreams, random actions"].high < 0.8
    assert deaf["delta_psnr"].mean < good["delta_psnr"].mean / 2


def test_outcome_scores(each_run: Path) -> None:
    args = outcome.Args(run=each_run, steps=4, n_clips=6, context_frames=2, n_dreams=2)
    result = outcome.measure(args, Dream.load(each_run), outcome.Store(each_run / "tokens.zarr"))
    for end in result["end"].values():
        assert end["expected"].mean == pytest.approx(end["happened"].mean, abs=0.02)
        assert end["happened"].low < end["expected"].mean < end["happened"].high
        assert end["expected_calibration_error"] < 0.03
    column = result["variables"]["COLUMN"]
    assert column["outcome model"].high < column["time only"].low / 2, "the column can be seen"


def test_termination_is_predicted_from_the_frames_before_it(each_run: Path) -> None:
    dream, store = Dream.load(each_run), outcome.Store(each_run / "tokens.zarr")
    episode = {name: array.copy() for name, array in store.read_episode(0).items()}
    episode["done"][:] = False
    episode["done"][-1] = True
    n = len(episode["done"]) - n_given_rows(store)
    args = outcome.Args(run=each_run, context_frames=2, n_dreams=3, n_negatives=5)
    info = outcome.predicted_ends(args, dream, [episode])
    assert info["happened"].tolist() == [False] * 5 + [True], "every end, and as many others as were asked for"
    assert info["weight"].tolist() == [(n - 3) / 5] * 5 + [1.0], "five stand for all that have a context before them"
    episode["codes"][-1] = 0
    np.testing.assert_array_equal(
        outcome.predicted_ends(args, dream, [episode])["probability"], info["probability"], "it is not looked at"
    )
    episode["codes"][-2] = 0
    assert (outcome.predicted_ends(args, dream, [episode])["probability"] != info["probability"])[-1], (
        "but the one before is"
    )


def test_the_mean_at_each_time() -> None:
    episodes = [{"variables": np.array([[1.0], [2.0], [6.0]])}, {"variables": np.array([[3.0], [4.0]])}]
    assert outcome.mean_by_time(episodes).tolist() == [[2.0], [3.0], [6.0]]


def test_long_dreams_are_measured_and_drawn(each_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_horizon.main(long_horizon.Args(run=each_run, steps=40, window=10, num_envs=4, temperature=(1.0, 0.5)))
    text = capsys.readouterr().out
    assert "temperature 0.5" in text
    assert (each_run / "evaluation" / "long_horizon.png").stat().st_size > 10_000
    assert (each_run / "evaluation" / "long_horizon_run_0.5.png").exists()
    with pytest.raises(UserError, match="at least two windows"):
        long_horizon.Args(steps=10, window=10)


def test_figures_of_long_dreams_by_hand() -> None:
    frame = np.zeros((2, 2, 3), np.uint8)
    frame[0, 0] = 8
    assert long_horizon.sharpness(frame) == pytest.approx((4 + 4) / 2)
    assert long_horizon.perplexity(np.array([0, 0, 3, 3]), 8) == pytest.approx(2)
    assert long_horizon.drift(np.array([1.0, 9.0, 5.0]), np.array([0.0, 2.0, 4.0])) == pytest.approx(2)


def test_planning_finds_the_actions_that_end_where_it_pays(toy_run: Path) -> None:
    dream = DreamEnv(model=toy_run, horizon=0)
    frames = np.full((4, 16, 16, 3), 40, np.uint8)
    frames[:, 4:12, 0:4] = (250, 200, 60)  # the square stands in column 0
    options = {"frames": frames, "actions": [0, 0, 0], "variables": [0.0]}
    dream.reset(seed=0, options=options)
    dream.env_spec = dream.vector_env.env_spec = _renamed(dream)
    how = CEMConfig(n_candidates=24, n_elite=4, n_rounds=3, horizon=2, hold_steps=1, momentum=0.1)
    terminal_value = TerminalValue((("HEALTH", 10.0),))
    worth = survival_value(dream, np.array([[0, 0], [2, 2], [1, 1]]), 0, terminal_value)
    assert worth.argmax() in (1, 2)
    plan = cross_entropy_method(
        dream.env_spec.action, how, lambda a: survival_value(dream, a, 0, terminal_value), np.random.default_rng(0)
    )
    fork = dream.fork(1)
    for action in plan:
        fork.step_lanes(np.array([action]))
    assert fork.variables[0, 0] > 1.5, "columns 2 and 3 are worth most"
    with pytest.raises(UserError, match="n_elite must be at most n_candidates, 3, not 9"):
        CEMConfig(n_elite=9, n_candidates=3)
    with pytest.raises(UserError, match=r"momentum must be a fraction from 0 to 1, not 1\.5"):
        CEMConfig(momentum=1.5)


def _renamed(dream: DreamEnv):  # type: ignore[no-untyped-def]
    """The toy world with its column as the health to keep."""
    return replace(dream.env_spec, variables=("HEALTH",))


def test_futures_of_one_frame_diverge_under_different_actions_and_agree_under_the_same(run: Path) -> None:
    diverge.main(diverge.Args(run=run, n_starts=8, steps=4, steps_ahead=(1, 4), n_shown=1))
    told = json.loads((run / "evaluation" / "divergence.json").read_text())
    same, other = (told[name][1]["mean"] for name in ("same actions", "different actions"))
    assert same < 0.5 * other, "the toy world does what its actions say"
    assert (run / "evaluation" / "divergence.png").stat().st_size > 500
    black, white = np.zeros((1, 2, 4, 4, 3), np.uint8), np.full((1, 2, 4, 4, 3), 255, np.uint8)
    assert diverge.distance(black, white).tolist() == [[1.0, 1.0]]
    with pytest.raises(UserError, match="n_shown must be at most n_starts, 4, not 5"):
        diverge.Args(n_starts=4, n_shown=5)
    with pytest.raises(UserError, match="steps_ahead must be at most steps, 4, not 15"):
        diverge.Args(steps=4)


def test_rank_correlation_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    means = np.array([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    noise, alone = rng.normal(size=(2, 5, 50)), np.arange(50)
    r, low, high = rank.rank_correlation(means + noise[0] / 10, means * 7 + noise[1], alone, 0)
    assert (r, high) == pytest.approx((1, 1))
    assert low > 0.85
    assert rank.rank_correlation(means + noise[0] / 10, -means + noise[1] / 10, alone, 0)[0] < -0.9
    of_starts = (means + 3 * noise[0, :, :5]).repeat(10, 1)  # ten dreams from each of five starts, all alike
    _, wide, _ = rank.rank_correlation(of_starts, means + noise[1] / 10, np.arange(5).repeat(10), 0)
    _, narrow, _ = rank.rank_correlation(of_starts, means + noise[1] / 10, alone, 0)
    assert wide < narrow, "fifty lanes from five starts are five samples"
    with pytest.raises(UserError, match="at least 3 policies, not 2; give more with --policy"):
        rank.main(rank.Args(policy=("a", "b")))


def test_an_exported_run_dreams_at_half_the_size(each_run: Path, tmp_path: Path) -> None:
    export.main(export.Args(run=each_run, out=tmp_path / "small", contexts=3))
    small, contexts = Dream.load(tmp_path / "small"), Context.load(tmp_path / "small")
    assert len(contexts) == 3
    size = lambda folder: sum(f.stat().st_size for f in folder.rglob("*/checkpoint.safetensors"))  # noqa: E731
    assert size(tmp_path / "small") < size(each_run) / 5, "no optimizer, half precision"
    with pytest.raises(UserError, match="is the run folder itself"):
        export.main(export.Args(run=each_run, out=each_run))
    big = Dream.load(each_run)
    for name in ("vqvae", "prior", "outcome"):
        for a, b in zip(getattr(big, name).parameters(), getattr(small, name).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    env = DreamEnv(model=tmp_path / "small")
    env.reset(seed=0)
    env.step(1)


def test_speeds_stand_beside_what_the_run_is_worth(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldmodel.utils.hardware.supports_bfloat16", lambda: False)
    for name, prior in (("controllability", weights_digest(run / "prior")), ("results", "another")):
        figures = {"delta_psnr": {"mean": 2.25}, "bits_per_dim": {"true actions": {"mean": 4.5}}}
        write_json(run / "evaluation" / f"{name}.json", {"protocol": {"prior": prior}} | figures)
    args = benchmark.Args(
        run=(str(run),), precision=("auto",), num_envs=(1, 4), seconds=0.2, out=tmp_path / "speed.json"
    )
    benchmark.main(args)
    one, four = json.loads(args.out.read_text())["rows"]
    assert one["precision"] == "float32", "where bfloat16 is emulated"
    assert one["codes_per_second"] == pytest.approx(16 * one["steps_per_second"])
    assert one["passes"] == 7, "the anti-diagonals of 4 x 4 codes"
    assert 0 < one["matmul_share"] < 1
    assert four["steps_per_second"] > 0
    assert one["delta_psnr"] == 2.25
    assert "bits" not in one, "measured for another prior"
    assert "2.25" in capsys.readouterr().out
    with pytest.raises(UserError, match="num_envs must be at least 1, not 0"):
        benchmark.Args(num_envs=(0,))


def test_the_end_of_a_future_is_worth_what_the_critic_of_a_policy_says() -> None:
    dream, actions = DreamEnv(horizon=0), np.array([[0, 1], [2, 3]])
    dream.reset(seed=2)
    terminal_value = TerminalValue.from_policy("health_gathering_supreme_dream", dream.env_spec)
    assert (terminal_value.gamma, terminal_value.variable_weights, terminal_value.n_stack) == (
        0.99,
        (("HEALTH", 2.0),),
        1,
    ), "rewards were scaled by 0.01"
    fork, policy = dream.fork(2, 7), load_policy("health_gathering_supreme_dream")
    first, second = (fork.step_lanes(actions[:, t])[0] for t in (0, 1))
    values = policy.predict_values(torch.from_numpy(fork.frames).permute(0, 3, 1, 2))[:, 0].detach().numpy() / 0.01
    expected = first + 0.99 * second + 0.99**2 * (2.0 * fork.variables[:, 0] + values)
    np.testing.assert_allclose(survival_value(dream, actions, 7, terminal_value), expected, rtol=1e-5)


def test_every_variable_that_shaped_a_critic_is_counted(tmp_path: Path) -> None:
    env_spec, policy = DreamEnv(horizon=0).env_spec, load_policy("health_gathering_supreme_dream")
    training = {"reward_scale": 0.5, "reward_shaping": [["HEALTH", 1.0], ["AMMO2", 1.5]], "gamma": 0.9}
    save_policy(tmp_path, policy, training, {}, resumable=False)
    armed = replace(env_spec, variables=("AMMO2", "HEALTH"))
    assert TerminalValue.from_policy(str(tmp_path), armed).variable_weights == (("HEALTH", 2.0), ("AMMO2", 3.0))
    with pytest.raises(UserError, match="trained with the game variable AMMO2, which this dream does not"):
        TerminalValue.from_policy(str(tmp_path), env_spec)
    going_on = (np.ones(1), np.zeros(1, bool), np.zeros(1, bool), {})
    fork = SimpleNamespace(
        frames=np.zeros((1, 4, 4, 3)), variables=np.array([[7.0, 50.0]]), step_lanes=lambda action: going_on
    )
    dream: Any = SimpleNamespace(env_spec=armed, fork=lambda n, seed: fork)
    terminal_value = TerminalValue((("HEALTH", 2.0), ("AMMO2", 3.0)))
    assert survival_value(dream, np.zeros((1, 2), int), 0, terminal_value).tolist() == [2 + 2 * 50 + 3 * 7]


def test_a_policy_that_only_imitates_is_no_critic(tmp_path: Path) -> None:
    env_spec = DreamEnv(horizon=0).env_spec
    policy = load_policy("health_gathering_supreme_dream")
    save_policy(tmp_path, policy, {"n_rounds": 6}, {}, resumable=False)
    with pytest.raises(UserError, match="has no value function"):
        TerminalValue.from_policy(str(tmp_path), env_spec)
