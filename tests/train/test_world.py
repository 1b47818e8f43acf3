"""One command makes a world of an environment: its choices, its stages in order, and a real one at toy size."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from torch.utils.tensorboard import SummaryWriter

from configs import parse
from configs.scripts import ROOT
from tests.conftest import fill
from train import commands, world
from train.world_choices import choose_motion_weight, choose_size, episodes_for, steps_for, steps_per_second
from worldmodel.data.motion import Motion
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
    assert episodes_for(speed=100.0, seconds=60.0, encoding=1000.0, length=50.0) == 120
    assert episodes_for(speed=100.0, seconds=60.0, encoding=20.0, length=50.0) == 80, "encoding takes longer"
    assert episodes_for(speed=1.0, seconds=1.0, encoding=1.0, length=50.0) == 50
    assert steps_for(speed=10.0, seconds=154.9) == 1200
    assert steps_for(speed=10.0, seconds=1.0) == 50


def test_the_speed_is_that_of_the_last_steps(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step, second in ((20, 100.0), (40, 104.0)):
            writer.add_scalar("train/loss", 1.0, step, walltime=second)
    assert steps_per_second(tmp_path) == pytest.approx(5.0)


class Runner:
    """Takes the place of `run_python`: parses the command as its script would, and writes what is read of it."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.called: list[tuple[str, Any]] = []

    def __call__(self, line: list[str]) -> int:
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
    monkeypatch.setattr(world, "draw_reconstructions", lambda run: run / "reconstruction.png")
    return runner


def test_stages_fit_into_the_time_and_a_resumed_run_repeats_its_choices(tmp_path: Path, runner: Runner) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path / "run", minutes=30)
    world.main(args)
    assert [name for name, _ in runner.called] == STAGES
    called = dict(runner.called)  # the last call of each
    assert called["gym"].size == 64 and called["vqvae"].model.frame_size == (64, 64)
    assert called["vqvae"].model.motion_loss_weight == 10.0
    for name, share in (("vqvae", 0.38 / 0.92), ("prior", 0.32 / 0.44), ("outcome", 0.5)):
        seconds = called[name].trainer.steps / 20 + 25
        assert 0.93 < seconds / (30 * 60 * share) <= 1
    chosen = json.loads((tmp_path / "run/world.json").read_text())["chosen"]
    runner.called.clear()
    world.main(replace(args, minutes=10))
    assert [name for name, _ in runner.called] == ["gym", "vqvae", "tokens", "prior", "outcome", "dream", "evaluate"]
    assert json.loads((tmp_path / "run/world.json").read_text())["chosen"] == chosen
    assert dict(runner.called)["prior"].trainer.steps == chosen["prior_steps"]


def test_other_settings_need_another_run(tmp_path: Path, runner: Runner) -> None:
    args = world.Args(env_id="Toy-v0", run=tmp_path / "run")
    world.main(args)
    with pytest.raises(UserError, match="holds a world with env_id = Toy-v0, but Other-v0 was asked for; use"):
        world.main(replace(args, env_id="Other-v0"))
    for text in ("{", "[]", '{"chosen": {}}', '{"settings": {}, "chosen": 3}'):
        (args.run / "world.json").write_text(text)
        with pytest.raises(UserError, match=r"world\.json is damaged; restore it, or use another --run"):
            world.main(args)


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
