"""Make a world model of any Gymnasium environment in a given time, and say how good it is.

    python train/world.py --env-id ale_py:ALE/Breakout-v5 --minutes 30 --run runs/breakout

    look        a few episodes, to see how fast it runs, how much moves, and how small that is
    record      random play, or a policy's, into <run>/data.zarr
    tokenizer   a recurrent VQ-VAE; its verdict and <run>/reconstruction.png come before the rest of the time is spent
    prior       the model of the next frame
    outcome     rewards, ends and variables
    judge       dreams of held-out episodes beside the truth, with verdicts in words

Each stage is the script that it is anywhere else, as a command that is printed first, with the preset `world`. What was
chosen is in <run>/world.json: the frame size, the weight of what moves, and the steps that fit into the time. The same
command resumes an interrupted run.

Random play shows little of most games. Record a better policy with `--policy` when you have one.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.scripts import command_words, flag_words
from configs.written import Written, make_dream
from train.commands import run_script
from train.run_state import RunState
from train.world_choices import (
    choose_motion_weight,
    choose_size,
    draw_reconstructions,
    episodes_for,
    steps_for,
    steps_per_second,
)
from worldmodel.data.motion import measure_motion
from worldmodel.data.opening import open_store
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.settings import Count, Positive, Settings

SHARES = {"record": 0.08, "vqvae": 0.38, "tokens": 0.10, "prior": 0.32, "outcome": 0.06, "judge": 0.06}
"""How the time is divided."""
FREE = ("run", "minutes", "trust_policy")
"""Settings that a resumed run may change."""
LOOK_EPISODES, LOOK_SIZE = 4, 128
START = 6.0
"""Seconds in which a recorder starts."""
TRIAL_STEPS = 40
"""Steps of a training that is started only to see how fast it is."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Make a world model of any Gymnasium environment in a given time."""

    env_id: str = "CartPole-v1"
    """Gymnasium id of the environment; `module:id` imports the module first."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON."""
    policy: str = "random"
    """Player: "random", a folder, a zip of Stable-Baselines3, or module:name. The name is of a function or a class."""
    trust_policy: bool = False
    """Unpickle the zip, which can run any code. Only for files whose author you trust."""
    run: Path = Path("runs/world")
    """Run folder."""
    minutes: Positive = 30
    """Time for everything. More time gives a better model, up to hours."""
    size: Count = 0
    """Height and width of a frame in pixels, 64 or 96; 0 chooses."""
    max_episode_steps: Positive = 1000
    """Time limit of an episode in steps, beside the environment's own."""


class Choices(RunState):
    """What was chosen, in <run>/world.json. A resumed run makes the same choices."""

    def __init__(self, args: Args) -> None:
        super().__init__(args.run, "world", args, FREE, "chosen", {})

    def once(self, name: str, choose: Callable[[], Any]) -> Any:
        """The value that was chosen before, or else one that is chosen now."""
        if name not in self.value:
            self.value[name] = choose()
            self.write()
            print(f"chosen: {name.replace('_', ' ')} = {self.value[name]}", flush=True)
        return self.value[name]


def run_stage(script: str, flags: dict[str, Any]) -> None:
    """Run a script with the preset `world` and flags; `UserError` if it fails."""
    preset = [] if script.startswith("collect/") else ["--preset", "world"]
    print()
    run_script(script, preset + flag_words(flags))


class World:
    """The stages, and the time that is left for them."""

    def __init__(self, args: Args, choices: Choices) -> None:
        self.args, self.choices, self.end = args, choices, time.monotonic() + 60 * args.minutes

    def seconds(self, stage: str, now: str = "") -> float:
        """A stage's share of the time that is left when `now` is about to start, by default the stage itself."""
        to_come = list(SHARES)[list(SHARES).index(now or stage) :]
        left = max(0.0, self.end - time.monotonic())
        return left * SHARES[stage] / sum(SHARES[name] for name in to_come)

    def record(self) -> None:
        """Look at a few episodes, choose sizes, and record."""
        args, chosen, once = self.args, self.choices.value, self.choices.once
        names = ("env_id", "env_kwargs", "policy", "trust_policy", "max_episode_steps")
        how = {name: getattr(args, name) for name in names}
        look, data = args.run / "look.zarr", args.run / "data.zarr"
        if "episodes" not in chosen:
            before = time.monotonic()
            few = {"out": look, "episodes": LOOK_EPISODES, "size": LOOK_SIZE, "num_workers": 1}
            run_stage("collect/gym.py", how | few)
            store, took = open_store(str(look)), time.monotonic() - before
            motion = measure_motion(store)
            if not motion.smallest:
                raise UserError(
                    f"nothing moves in {args.env_id} under this policy; give another --policy, and another --run"
                )
            once("motion", lambda: {name: round(value, 4) for name, value in asdict(motion).items()})
            once("size", lambda: args.size or choose_size(motion, LOOK_SIZE))
            once("motion_loss_weight", lambda: choose_motion_weight(motion))
            pace = (store.n_rows / max(1.0, took - START), self.seconds("record"), self.seconds("tokens", "record"))
            once("episodes", lambda: episodes_for(*pace, store.n_rows / LOOK_EPISODES))
        run_stage("collect/gym.py", how | {"out": data, "episodes": chosen["episodes"], "size": chosen["size"]})
        shutil.rmtree(look, ignore_errors=True)

    def train(self, stage: str, sizes: dict[str, Any] | None = None) -> None:
        """Train a stage for as many steps as fit into its time, by the speed of a trial."""
        script, folder, key = f"train/{stage}.py", self.args.run / stage, f"{stage}_steps"
        flags = {"run": self.args.run} | (sizes or {})
        if key not in self.choices.value:
            before, seconds = time.monotonic(), self.seconds(stage)
            run_stage(script, flags | {"trainer.steps": TRIAL_STEPS, "n_eval_clips": 2})
            speed, left = steps_per_second(folder / "log"), seconds - (time.monotonic() - before)
            shutil.rmtree(folder)
            self.choices.once(key, lambda: steps_for(speed, left))
        run_stage(script, flags | {"trainer.steps": self.choices.value[key]})

    def all(self) -> None:
        """Run all stages."""
        run, chosen = self.args.run, self.choices.value
        self.record()
        size, weight = chosen["size"], chosen["motion_loss_weight"]
        self.train("vqvae", {"model.frame_size": [size, size], "model.motion_loss_weight": weight})
        print(f"look: {draw_reconstructions(run)} has held-out frames above their reconstructions", flush=True)
        run_stage("train/tokens.py", {"run": run})
        self.train("prior")
        self.train("outcome")
        run_stage("rollout/dream.py", {"run": run})
        run_stage("rollout/evaluate.py", {"run": run})


def main(args: Args) -> Written:
    args.run.mkdir(parents=True, exist_ok=True)
    with folder_lock(args.run, "world.lock"):
        World(args, Choices(args)).all()
    play, policy = (" ".join(command_words(script)) for script in ("rollout/play.py", "train/policy.py"))
    print(
        f"\nfilms:    {args.run}/dreams has the truth beside dreams of the same actions"
        f"\nplay it:  {play} --run {args.run}"
        f"\npolicy:   {policy} --env-id VideoGPTDream-v0 --run {args.run} --reward-shaping"
        "\nbetter:   the same command with another --run and more --minutes, or with a --policy that plays well"
    )
    return Written(args.run, make_dream(args.run))


if __name__ == "__main__":
    command(main, "world")
