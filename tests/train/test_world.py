"""One command makes a world of an environment: its choices and its stages. A real run is in tests/test_wheel.py."""

from __future__ import annotations

import importlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, get_type_hints

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from configs import parse
from configs.scripts import ROOT
from tests.conftest import TOY, fill, toy_episode
from train import commands, world, world_choices
from train.world_choices import (
    choose_motion_weight,
    choose_size,
    encoding_speed,
    episodes_for,
    flags_for_lengths,
    steps_for,
    steps_per_second,
)
from worldmodel.data.motion import Motion
from worldmodel.data.opening import open_store
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

STAGES = ["gym", "gym", "vqvae", "vqvae", "tokens", "prior", "prior", "outcome", "outcome", "dream", "evaluate"]


@pytest.mark.parametrize(("smallest", "size"), [(100.0, 64), (12.0, 64), (11.0, 96), (0.5, 96)])
def test_small_things_get_larger_frames(smallest: float, size: int) -> None:
    """12 pixels at 128 are 3 at 64."""
    assert choose_size(Motion(0.1, 0.0, smallest), 128) == size


@pytest.mark.parametrize(("changed", "weight"), [(0.5, 10.0), (0.02, 25.0), (0.001, 50.0)])
def test_what_seldom_moves_weighs_more(changed: float, weight: float) -> None:
    assert choose_motion_weight(Motion(changed, 0.0, 20.0)) == weight


def test_times_become_numbers() -> None:
    assert episodes_for(frames=6000.0, length=50.0) == 120
    assert episodes_for(frames=1.0, length=50.0) == 80
    assert episodes_for(frames=1.0, length=1000.0) == 20
    assert episodes_for(frames=1e9, length=50.0) == 2000
    assert steps_for(speed=10.0, seconds=154.9) == 1200
    assert steps_for(speed=10.0, seconds=1.0) == 50


def test_the_speed_of_encoding_is_that_of_a_model_that_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames in each of the lanes, in four seconds."""
    made, build, ticks = [], world_choices.build_vqvae, itertools.count(0.0, 4.0)
    monkeypatch.setattr(world_choices, "build_vqvae", lambda config: made.append(build(config)) or made[-1])
    monkeypatch.setattr(world_choices, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setitem(world_choices.LANES, world_choices.DEVICE, 3)
    assert encoding_speed(64) == 1.5
    assert made[0].config.frame_size == (64, 64) and not made[0].training


@pytest.mark.parametrize(
    ("lengths", "flags"),
    [
        ([40] * 20, {}),
        ([22] * 20, {"vqvae": 22, "prior": 12, "dream": (8, 13), "evaluate": [1, 5, 10]}),
        ([9] * 20, {"vqvae": 9, "prior": 8, "dream": (4, 4), "evaluate": [1]}),
        ([100] + [7] * 19, {"vqvae": 7, "prior": 6, "dream": (3, 3), "evaluate": [1]}),
    ],
)
def test_short_episodes_get_shorter_clips(lengths: list[int], flags: dict[str, Any], tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", TOY, {}) as writer:
        for i, length in enumerate(lengths):
            writer.append(toy_episode(np.random.default_rng(i), length - 1))
    found = flags_for_lengths(Store(tmp_path / "s"))
    names = {"vqvae": "n_eval_frames", "prior": "n_latent_frames", "evaluate": "steps_ahead"}
    assert {
        k: found[k][names[k]] if k in names else (found[k]["context_frames"], found[k]["steps"]) for k in found
    } == flags


def test_episodes_that_are_too_short_are_told(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", TOY, {}) as writer:
        for i in range(20):
            writer.append(toy_episode(np.random.default_rng(i), 3))
    with pytest.raises(
        UserError, match="shorter than 6 frames, too short to learn from; give a --policy that survives"
    ):
        flags_for_lengths(Store(tmp_path / "s"))


def test_the_speed_is_that_of_the_last_steps(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step, second in ((20, 100.0), (40, 104.0), (60, 130.0), (80, 134.0)):  # an evaluation of 22 seconds
            writer.add_scalar("train/loss", 1.0, step, walltime=second)
    assert steps_per_second(tmp_path) == pytest.approx(5.0)
    with pytest.raises(UserError, match="none does not have the speed of its training any more; use another --run"):
        steps_per_second(tmp_path / "none")


class Runner:
    """Takes the place of `run_python`: parses the command as its script would, and writes what is read of it."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.called: list[tuple[str, Any]] = []

    def __call__(self, line: list[str], output: IO[str] | None = None, is_part: bool = False) -> int:
        assert is_part
        script = Path(line[0]).relative_to(ROOT)
        module = importlib.import_module(".".join(script.with_suffix("").parts))
        args = parse(
            get_type_hints(module.main)["args"], "collect" if script.parts[0] == "collect" else script.stem, line[1:]
        )
        if self.fails == script.stem:
            return 2
        self.called.append((script.stem, args))
        if script.stem == "gym":
            fill(Path(args.out), args.episodes)
        if script.stem in ("vqvae", "prior", "outcome"):
            with SummaryWriter(str(args.run / script.stem / "log")) as writer:
                for step, second in ((20, 100.0), (40, 101.0)):
                    writer.add_scalar("train/loss", 1.0, step, walltime=second)
        return 0


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(commands, "run_python", runner)
    monkeypatch.setattr(world, "time", SimpleNamespace(monotonic=lambda: 0.0))  # every command takes no time
    monkeypatch.setattr(world, "encoding_speed", lambda size: 10.0)
    monkeypatch.setattr(world, "time_limit", lambda env_id, kwargs: 200)
    monkeypatch.setattr(world, "draw_reconstructions", lambda run: run / "reconstruction.png")
    return runner


def test_stages_fit_into_the_time_and_a_resumed_run_repeats_its_choices(
    tmp_path: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path / "run", minutes=30)
    world.main(args)
    assert [name for name, _ in runner.called] == STAGES
    called = dict(runner.called)  # the last call of each
    assert called["gym"].size == 64 and called["vqvae"].model.frame_size == (64, 64)
    assert called["vqvae"].model.motion_loss_weight == 10.0
    encoding = open_store(str(tmp_path / "run/data.zarr")).n_rows / 10
    for name, share, other in (("vqvae", 0.26 / 0.84, encoding), ("prior", 0.46 / 0.58, 0), ("outcome", 0.5, 0)):
        seconds = called[name].trainer.steps / 20 + 25
        assert 0.93 < seconds / ((30 * 60 - other) * share) <= 1
    chosen = json.loads((tmp_path / "run/world.json").read_text())["chosen"]
    runner.called.clear()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert said == [f"stage {k} of 6: {name} (30 of 30 minutes left)" for k, name in enumerate(world.SHARES, 1)]
    world.main(replace(args, minutes=10))
    assert [name for name, _ in runner.called] == ["gym", "vqvae", "tokens", "prior", "outcome"]
    assert "run: complete already; more --minutes train" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/world.json").read_text())["chosen"] == chosen
    assert dict(runner.called)["prior"].trainer.steps == chosen["prior_steps"]


def stop_at(stage: str, runner: Runner, args: world.Args) -> None:
    """A run that fails in a stage; the next one does not."""
    runner.fails = stage
    with pytest.raises(UserError, match="has failed"):
        world.main(args)
    runner.fails = ""


def test_more_minutes_train_the_prior_of_a_finished_run_further(
    tmp_path: Path, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path, minutes=30)
    stop_at("evaluate", runner, args)
    world.main(replace(args, minutes=10))  # resumes what was planned for 30 minutes
    before = json.loads((tmp_path / "world.json").read_text())["chosen"]
    runner.called.clear()
    capsys.readouterr()
    world.main(replace(args, minutes=52))
    said = capsys.readouterr().out
    assert [name for name, _ in runner.called] == STAGES[1:2] + STAGES[3:6] + ["outcome", "dream", "evaluate"]
    after = json.loads((tmp_path / "world.json").read_text())["chosen"]
    assert after["vqvae_steps"] == before["vqvae_steps"] and after["minutes"] == 52
    assert after["prior_steps"] - before["prior_steps"] == 20_000, "20 a second in 46/58 of 22 minutes, less the start"
    assert dict(runner.called)["prior"].trainer.steps == after["prior_steps"]
    assert "stage 6 of 6: judge (22 of 22 minutes left)" in said and "(22 asked for)" in said


def test_more_minutes_for_an_unfinished_run_are_not_given_twice(tmp_path: Path, runner: Runner) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path, minutes=30)
    stop_at("prior", runner, args)
    world.main(replace(args, minutes=60))
    runner.called.clear()
    world.main(replace(args, minutes=60))
    assert "evaluate" not in dict(runner.called), "it is complete already"
    assert json.loads((tmp_path / "world.json").read_text())["chosen"]["minutes"] == 60


def test_more_minutes_for_a_run_whose_steps_are_planned_come_afterwards(tmp_path: Path, runner: Runner) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path, minutes=30)
    stop_at("evaluate", runner, args)
    world.main(replace(args, minutes=60))
    before = dict(runner.called)["prior"].trainer.steps
    world.main(replace(args, minutes=60))
    assert dict(runner.called)["prior"].trainer.steps > before


def test_a_look_at_the_environment_that_was_interrupted_is_taken_again(
    tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete one would be opened within a second, as if the environment were that fast."""
    args = world.Args(env_id="Toy-v0", run=tmp_path, minutes=30)
    with monkeypatch.context() as context:
        context.setattr(world, "measure_motion", lambda store: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.main(args)
    (tmp_path / "look.zarr/old").touch()
    there: list[bool] = []
    monkeypatch.setattr(world, "open_store", lambda path: there.append(Path(path, "old").exists()) or open_store(path))
    world.main(args)
    assert there and not any(there)


def test_other_settings_need_another_run(tmp_path: Path, runner: Runner) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path / "run")
    world.main(args)
    with pytest.raises(UserError, match="holds a world with env_id = Toy-v0, but Other-v0 was asked for; use"):
        world.main(replace(args, env_id="Other-v0"))
    for text in ("{", "[]", '{"chosen": {}}', '{"settings": {}, "chosen": 3}'):
        (args.run / "world.json").write_text(text)
        with pytest.raises(UserError, match=r"world\.json is damaged; restore it, or use another --run"):
            world.main(args)


@pytest.mark.parametrize(
    ("own", "asked", "limit", "said"),
    [
        (
            0,
            0,
            1000,
            "Toy-v0 has no time limit; episodes are cut at 1,000 steps (--max-",
        ),
        (
            108_000,
            0,
            1000,
            "Toy-v0 has a time limit of 108,000 steps; episodes are cut at 1,000",
        ),
        (150, 0, 150, ""),
        (150, 50, 50, ""),
    ],
)
def test_the_time_limit_is_the_environments_own(
    own: int,
    asked: int,
    limit: int,
    said: str,
    tmp_path: Path,
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(world, "time_limit", lambda env_id, kwargs: own)
    world.main(world.Args(env_id="Toy-v0", run=tmp_path, max_episode_steps=asked))
    assert {args.max_episode_steps for name, args in runner.called if name == "gym"} == {limit}
    told = capsys.readouterr().out
    assert said in told if said else "episodes are cut" not in told


def test_too_little_time_is_told(tmp_path: Path, runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    world.main(world.Args(env_id="Toy-v0", run=tmp_path, minutes=1))
    said = capsys.readouterr().out
    assert "chosen: 50 training steps of the VQ-VAE" in said and "(1 asked for)" in said
    assert "better:   the time was too short for vqvae; use another --run and more" in said
    with pytest.raises(UserError, match="no environment was given; name one, such as --env-id CartPole-v1"):
        world.main(world.Args(run=tmp_path))


def test_a_stage_that_fails_is_named(tmp_path: Path, runner: Runner) -> None:
    runner.fails = "tokens"
    with pytest.raises(UserError, match=r"train/tokens.py has failed; its error is above. Fix that, and run the same"):
        world.main(world.Args(env_id="Toy-v0", run=tmp_path / "run"))


def test_an_environment_in_which_nothing_moves_is_told(
    tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "measure_motion", lambda store: Motion(0.0, 1.0, 0.0))
    with pytest.raises(
        UserError, match="nothing moves in Toy-v0 under this policy; give another --policy, and another --run"
    ):
        world.main(world.Args(env_id="Toy-v0", run=tmp_path / "run"))


def test_a_policy_of_ones_own_is_recorded_with_trust_if_that_is_given(tmp_path: Path, runner: Runner) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path / "run", policy="agent.zip")
    world.main(args)
    world.main(replace(args, trust_policy=True))
    played = [args for name, args in runner.called if name == "gym"]
    assert [(args.policy, args.trust_policy) for args in played] == [("agent.zip", False)] * 2 + [("agent.zip", True)]
