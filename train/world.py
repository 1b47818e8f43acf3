"""Make a world model of any Gymnasium environment in a given time, and say how good it is.

    python train/world.py --env-id ale_py:ALE/Breakout-v5 --minutes 30 --run runs/breakout

    look        a few episodes, to see how fast the environment runs, how much moves, and how small the moving parts are
    record      random play, or that of a policy, into <run>/data.zarr
    tokenizer   a recurrent VQ-VAE; its verdict and <run>/reconstruction.png come before the rest of the time is spent
    prior       the model of the next frame
    outcome     rewards, terminations and variables
    judge       dreams of held-out episodes beside the truth, with verdicts in words

Each stage runs the usual script as a command with the preset `world`; the command is printed first. What was chosen is
in <run>/world.json: the frame size, the loss weight of moving pixels, and the numbers of steps that fit into the time.
The same command resumes an interrupted run. With more --minutes it trains the prior and the outcome model of a finished
run further.

Random play shows little of most games. Record a better policy with `--policy` when you have one.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.scripts import command_words, flag_words
from configs.written import Written, make_dream
from envs.gym_frames import parse_env_kwargs, time_limit
from train.commands import run_script
from train.run_state import RunState
from train.world_choices import (
    MIN_STEPS,
    choose_motion_weight,
    choose_size,
    draw_reconstructions,
    encoding_speed,
    episodes_for,
    flags_for_lengths,
    steps_for,
    steps_per_second,
)
from worldmodel.data.motion import measure_motion
from worldmodel.data.opening import open_store
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.settings import Count, NotNegative, Positive, Settings

SHARES = {"record": 0.06, "vqvae": 0.26, "tokens": 0.10, "prior": 0.46, "outcome": 0.06, "judge": 0.06}
"""Share of the time for each stage. Once data is recorded, the time for its tokens is known; others share the rest."""
FREE = ("run", "minutes", "trust_policy")
"""Settings that a resumed run may change."""
STAGES = ("vqvae", "prior", "outcome")
"""Stages that train."""
LOOK_EPISODES, LOOK_SIZE = 4, 128
START = 6.0
"""Seconds that a recorder takes to start."""
TRIAL_STEPS = 40
"""Training steps of a trial, which measures the speed."""
MAX_STEPS = 1000
"""Time limit of an episode in steps, unless the user sets one."""
CHOSEN = {
    "minutes": "{} minutes for everything",
    "max_episode_steps": "episodes of at most {} steps",
    "motion": "{changed:.2%} of the pixels change in a step; the smallest moving parts have {smallest:.0f} pixels of "
    f"{LOOK_SIZE}x{LOOK_SIZE}",
    "size": "frames of {0}x{0} pixels",
    "motion_loss_weight": "pixels that change weigh {} times more in the loss",
    "encoding_speed": "{} frames can be encoded in a second",
    "episodes": "{} episodes",
    "vqvae_steps": "{} training steps of the VQ-VAE",
    "prior_steps": "{} training steps of the prior",
    "outcome_steps": "{} training steps of the outcome model",
}
"""What is printed for each choice."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Make a world model of any Gymnasium environment in a given time."""

    env_id: str = ""
    """Gymnasium id of the environment, such as CartPole-v1; `module:id` imports the module first."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON."""
    wrappers: tuple[str, ...] = ()
    """Wrappers, the innermost first, as module:name. The name is of a class or function that takes the environment."""
    policy: str = "random"
    """Policy: "random", a folder, a zip of Stable-Baselines3, or module:name. The name is of a function or class."""
    trust_policy: bool = False
    """Unpickle the zip, which can run any code. Only for files whose author you trust."""
    run: Path = Path("runs/world")
    """Run folder."""
    minutes: Positive = 30
    """Minutes for everything, 15 or more. More time gives a better model, up to hours."""
    size: Count = 0
    """Height and width of a frame in pixels; 0 chooses 64 or 96."""
    motion_loss_weight: NotNegative | None = None
    """Weight of changing pixels in the VQ-VAE's loss, by default chosen from 10 to 50. More keeps small objects."""
    max_episode_steps: Count = 0
    """Time limit of an episode in steps; 0 takes the environment's own, but at most 1,000."""


class Choices(RunState):
    """What was chosen, in <run>/world.json. A resumed run makes the same choices."""

    def __init__(self, args: Args) -> None:
        super().__init__(args.run, "world", args, FREE, "chosen", {})

    def once(self, name: str, choose: Callable[[], Any]) -> Any:
        """The value of an earlier choice, or else a value that is chosen now."""
        if name not in self.value:
            self.value[name] = value = choose()
            self.write()
            print(f"chosen: {CHOSEN[name].format(value, **value if isinstance(value, dict) else {})}", flush=True)
        return self.value[name]


def run_stage(script: str, flags: dict[str, Any], output: IO[str] | None = None) -> None:
    """Run a script with the preset `world` and flags; `UserError` if it fails."""
    preset = [] if script.startswith("collect/") else ["--preset", "world"]
    print()
    run_script(script, preset + flag_words(flags), output=output)


class World:
    """The stages, and the time that is left for them."""

    def __init__(self, args: Args, choices: Choices) -> None:
        self.args, self.choices = args, choices
        self.minutes = self.lengthen() or args.minutes
        self.end = time.monotonic() + 60 * self.minutes
        self.encoding = 0.0
        """Seconds that encoding the recorded data takes."""
        self.lengths: dict[str, dict[str, Any]] = {}
        """Flags of the stages if episodes are short."""

    def lengthen(self) -> int:
        """If a finished run is given more minutes than before, plan more steps of the prior and the outcome model.

        The VQ-VAE stays, because everything after it depends on its codes.

        Returns:
            The minutes that it is given more.
        """
        chosen, stages = self.choices.value, ("prior", "outcome", "judge")
        extra = self.args.minutes - self.choices.once("minutes", lambda: self.args.minutes)
        if extra > 0 and "prior_steps" not in chosen:  # nothing is planned yet that would not use them
            chosen["minutes"] = self.args.minutes
            self.choices.write()
        if extra <= 0 or "judged" not in chosen:
            return 0
        for stage in stages[:2]:
            seconds = 60 * extra * SHARES[stage] / sum(SHARES[name] for name in stages)
            chosen[f"{stage}_steps"] += steps_for(steps_per_second(self.args.run / stage / "log"), seconds)
            print(f"chosen: {CHOSEN[f'{stage}_steps'].format(chosen[f'{stage}_steps'])}, with {extra} minutes more")
        del chosen["judged"]
        chosen["minutes"] = self.args.minutes
        self.choices.write()
        return extra

    def seconds(self, stage: str, now: str = "") -> float:
        """A stage's share of the time that is left when `now` is about to start, by default the stage itself."""
        shares = {name: SHARES[name] for name in list(SHARES)[list(SHARES).index(now or stage) :]}
        left = self.end - time.monotonic()
        if self.encoding and shares.pop("tokens", 0):
            left -= self.encoding
        return max(0.0, left) * SHARES[stage] / sum(shares.values())

    def announce(self, stage: str) -> None:
        """Say which stage starts, and how much time is left."""
        number, left = list(SHARES).index(stage) + 1, max(0.0, self.end - time.monotonic()) / 60
        print(f"\nstage {number} of {len(SHARES)}: {stage} ({left:.0f} of {self.minutes} minutes left)", flush=True)

    def record(self) -> None:
        """Look at a few episodes, choose sizes, and record."""
        self.announce("record")
        args, chosen, once = self.args, self.choices.value, self.choices.once
        how = {name: getattr(args, name) for name in ("env_id", "env_kwargs", "policy", "trust_policy")}
        how["wrappers"] = list(args.wrappers) or None
        how["max_episode_steps"] = once("max_episode_steps", lambda: args.max_episode_steps or default_limit(args))
        look, data = args.run / "look.zarr", args.run / "data.zarr"
        if "episodes" not in chosen:
            shutil.rmtree(look, ignore_errors=True)  # of an interrupted run; its speed would not be known
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
            given = args.motion_loss_weight
            once("motion_loss_weight", lambda: choose_motion_weight(motion) if given is None else given)
            once("encoding_speed", lambda: round(encoding_speed(chosen["size"]), 1))
            recorded = self.seconds("record") * store.n_rows / max(1.0, took - START)
            encoded = self.seconds("tokens", "record") * chosen["encoding_speed"]
            once("episodes", lambda: episodes_for(min(recorded, encoded), store.n_rows / LOOK_EPISODES))
        run_stage("collect/gym.py", how | {"out": data, "episodes": chosen["episodes"], "size": chosen["size"]})
        shutil.rmtree(look, ignore_errors=True)
        recording = open_store(str(data))
        self.encoding = recording.n_rows / chosen["encoding_speed"]
        self.lengths = flags_for_lengths(recording)

    def train(self, stage: str, sizes: dict[str, Any] | None = None) -> None:
        """Train a stage for as many steps as fit into its time, at the speed that a trial measures."""
        self.announce(stage)
        script, folder, key = f"train/{stage}.py", self.args.run / stage, f"{stage}_steps"
        flags = {"run": self.args.run} | self.lengths.get(stage, {}) | (sizes or {})
        if key not in self.choices.value:
            before, seconds = time.monotonic(), self.seconds(stage)
            print(f"\na trial of {TRIAL_STEPS} steps, to see how fast they are:", end="")
            with open(os.devnull, "w") as nowhere:
                run_stage(script, flags | {"trainer.steps": TRIAL_STEPS, "n_eval_clips": 2}, nowhere)
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
        self.announce("tokens")
        run_stage("train/tokens.py", {"run": run})
        self.train("prior")
        self.train("outcome")
        if "judged" in chosen:
            print(f"\n{run}: complete already; more --minutes train its prior and its outcome model further")
            return
        self.announce("judge")
        for stage in ("dream", "evaluate"):
            run_stage(f"rollout/{stage}.py", {"run": run} | self.lengths.get(stage, {}))
        chosen["judged"] = True
        self.choices.write()


def default_limit(args: Args) -> int:
    """The environment's own time limit, if it is not too long."""
    limit = time_limit(args.env_id, parse_env_kwargs(args.env_kwargs))
    if limit and limit <= MAX_STEPS:
        return limit
    own = f"a time limit of {limit:,} steps" if limit else "no time limit"
    print(f"{args.env_id} has {own}; episodes are cut at {MAX_STEPS:,} steps (--max-episode-steps sets another number)")
    return MAX_STEPS


def main(args: Args) -> Written:
    if not args.env_id:
        raise UserError("no environment was given; name one, such as --env-id CartPole-v1")
    before = time.monotonic()
    args.run.mkdir(parents=True, exist_ok=True)
    with folder_lock(args.run, "world.lock"):
        choices = Choices(args)
        (world := World(args, choices)).all()
    play, policy = (" ".join(command_words(script)) for script in ("rollout/play.py", "train/policy.py"))
    better = (
        "more --minutes, or another --run with a --policy that plays well; if reconstructions lose what moves, another "
        "--run with a larger --size or --motion-loss-weight"
    )
    if short := [stage for stage in STAGES if choices.value[f"{stage}_steps"] <= MIN_STEPS]:
        cure = "use another --run and more --minutes" if "vqvae" in short else "use more --minutes"
        better = f"the time was too short for {' and '.join(short)}; {cure}"
    print(
        f"\ntime:     {(time.monotonic() - before) / 60:.0f} minutes ({world.minutes} asked for)"
        f"\nvideos:   {args.run}/dreams has the truth beside dreams of the same actions"
        f"\nplay it:  {play} --run {args.run}"
        f"\n          (--trust-env also runs {args.env_id} itself, beside the dream)"
        f"\npolicy:   {policy} --env-id VideoGPTDream-v0 --run {args.run} --reward-shaping"
        f"\nbetter:   {better}"
    )
    return Written(args.run, make_dream(args.run))


if __name__ == "__main__":
    command(main, "world")
