"""Train the pusher of `BAIRPushing-v0` with Stable-Baselines3's SAC, from where things are.

    python train/pusher.py                                                  # runs/pushing/policy
    python train/pusher.py --export worldmodel/pretrained/pushing_policy    # and without what training needs

SAC, which learns from each step many times, for steps of physics are dear. A run that was interrupted goes on with its
networks; its memory of steps is filled anew.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from configs import command
from envs.pusher import PushTask, save_actor
from worldmodel.checkpoint import FILE, load_weights, read_header, same_config, save_checkpoint


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train a policy that pushes objects to goals."""

    out: Path = Path("runs/pushing/policy")
    """Folder for all networks and the TensorBoard log; an unfinished run in it goes on."""
    export: Path | None = None
    """Also write the acting network alone here at the end."""
    steps: int = 60_000
    """Environment steps."""
    until: int = 0
    """Stop after so many of them; 0 for all."""
    every: int = 2
    """Environment steps for each update: physics costs a third of it."""
    width: int = 128
    """Of the two hidden layers of each network."""
    learning_rate: float = 7e-4
    """Adam's, falling linearly to zero."""
    gamma: float = 0.95
    """Discount: a push takes some ten steps."""
    begin: int = 2_000
    """Steps of random actions before learning begins."""
    save_every: int = 10_000
    """Steps between two checkpoints."""
    seed: int = 0
    """Of episodes, weights and actions."""


def settings(args: Args) -> dict[str, Any]:
    """What makes two runs the same run; where they are written does not."""
    return {k: v for k, v in asdict(args).items() if k not in ("out", "export", "until", "save_every")}


class Saver(BaseCallback):
    """A checkpoint every `save_every` steps, and the end at `until`."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.args = args

    def _on_step(self) -> bool:
        if self.num_timesteps % self.args.save_every == 0:
            save(self.args, self.model)  # type: ignore[arg-type]
        return not 0 < self.args.until <= self.num_timesteps


def save(args: Args, sac: SAC) -> None:
    assert sac.log_ent_coef is not None
    progress = {"steps": sac.num_timesteps, "log_entropy_weight": sac.log_ent_coef.item()}
    save_checkpoint(args.out, sac.policy, {"kind": "sac_pusher_training", "training": settings(args)}, progress)


def go_on(args: Args, sac: SAC) -> None:
    """Take up a run where its last checkpoint left it."""
    same_config(args.out, {"kind": "sac_pusher_training", "training": settings(args)})
    load_weights(args.out, sac.policy)
    progress = read_header(args.out)[1]
    sac.num_timesteps = progress["steps"]
    sac.log_ent_coef.data.fill_(progress["log_entropy_weight"])  # type: ignore[union-attr]
    sac.learning_starts += sac.num_timesteps
    sac.set_random_seed(args.seed + sac.num_timesteps)


def main(args: Args) -> None:
    torch.set_num_threads(1)  # of networks so small: more threads cost more than they do
    sac = SAC(
        "MlpPolicy",
        Monitor(PushTask()),
        learning_rate=lambda left: args.learning_rate * left,
        gamma=args.gamma,
        learning_starts=args.begin,
        train_freq=args.every,
        policy_kwargs={"net_arch": [args.width, args.width]},
        tensorboard_log=str(args.out),
        seed=args.seed,
    )
    if (args.out / FILE).exists():
        go_on(args, sac)
    try:
        if sac.num_timesteps < (args.until or args.steps):
            left = args.steps - sac.num_timesteps
            sac.learn(
                left, Saver(args), reset_num_timesteps=sac.num_timesteps == 0, tb_log_name="log", progress_bar=True
            )
    finally:
        save(args, sac)
    if args.export is not None:
        save_actor(args.export, sac.actor, args.width, settings(args), {"steps": sac.num_timesteps})
    print(f"pusher: {args.export or args.out} after {sac.num_timesteps:,} steps")


if __name__ == "__main__":
    command(main, "pusher")
