"""Train the pusher of `BAIRPushing-v0` with Stable-Baselines3's PPO, from where things are.

    python train/pusher.py                                                  # runs/pushing/policy
    python train/pusher.py --export worldmodel/pretrained/pushing_policy    # and without what training needs

PPO, for a step of physics is cheap beside an update: SAC learned more from each step and less in a minute. A run that
was interrupted goes on with its weights, its optimizer and its schedule; the episodes in play are lost.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from configs import command
from envs.pusher import KIND, PushTask, make_policy
from worldmodel.checkpoint import FILE, load_optimizer, load_weights, read_header, same_config, save_checkpoint
from worldmodel.errors import at_least


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train a policy that pushes objects to goals."""

    out: Path = Path("runs/pushing/policy")
    """Folder for the policy and its TensorBoard log; an unfinished run in it goes on."""
    export: Path | None = None
    """Also write the policy here at the end, without what training needs to go on."""
    steps: int = 200_000
    """Environment steps over which the learning rate falls to zero."""
    until: int = 0
    """Stop after so many of them; 0 for all."""
    width: int = 128
    """Of the two hidden layers of policy and value."""
    n_envs: int = 16
    """Bins, one after the other in one process."""
    n_steps: int = 128
    """Steps of each bin between two updates."""
    epochs: int = 10
    """Passes over each batch of experience."""
    learning_rate: float = 1e-3
    """Adam's, falling linearly to zero."""
    gamma: float = 0.95
    """Discount: a push takes some ten steps."""
    save_every: int = 20_000
    """Steps between two checkpoints."""
    seed: int = 0
    """Of episodes, weights and actions."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "width", "n_envs", "n_steps", "epochs", "save_every")


def settings(args: Args) -> dict[str, Any]:
    """What makes two runs the same run; where they are written does not."""
    return {k: v for k, v in asdict(args).items() if k not in ("out", "export", "until", "save_every")}


def config(args: Args) -> dict[str, Any]:
    return {"kind": KIND, "training": settings(args)}


class Saver(BaseCallback):
    """A checkpoint every `save_every` steps and at the end, Ctrl-C included."""

    def __init__(self, args: Args, saved: int) -> None:
        super().__init__()
        self.args, self.saved = args, saved

    def save(self) -> None:
        self.saved, policy = self.model.num_timesteps, self.model.policy
        save_checkpoint(self.args.out, policy, config(self.args), {"steps": self.saved}, policy.optimizer)

    def _on_rollout_end(self) -> None:
        if self.num_timesteps - self.saved >= self.args.save_every:
            self.save()

    def _on_step(self) -> bool:
        return not 0 < self.args.until <= self.num_timesteps


def make_ppo(args: Args) -> PPO:
    return PPO(
        "MlpPolicy",
        VecMonitor(DummyVecEnv([PushTask] * args.n_envs)),
        n_steps=args.n_steps,
        batch_size=args.n_envs * args.n_steps // 4,
        n_epochs=args.epochs,
        learning_rate=lambda left: args.learning_rate * left,
        gamma=args.gamma,
        policy_kwargs={"net_arch": [args.width, args.width], "log_std_init": -0.5},
        tensorboard_log=str(args.out),
        seed=args.seed,
        device="cpu",
    )


def main(args: Args) -> None:
    torch.set_num_threads(1)  # of networks so small: more threads cost more than they do
    ppo = make_ppo(args)
    if (args.out / FILE).exists():
        same_config(args.out, config(args))
        load_weights(args.out, ppo.policy)
        load_optimizer(args.out, ppo.policy.optimizer)
        ppo.num_timesteps = read_header(args.out)[1]["steps"]
        ppo.set_random_seed(args.seed + ppo.num_timesteps)
    saver, begun = Saver(args, ppo.num_timesteps), ppo.num_timesteps > 0
    try:
        if ppo.num_timesteps < (args.until or args.steps):
            left = args.steps - ppo.num_timesteps
            ppo.learn(left, saver, reset_num_timesteps=not begun, tb_log_name="log", progress_bar=True)
    finally:
        if ppo.num_timesteps > saver.saved:
            saver.save()
    if args.export is not None:
        policy = make_policy(args.width)
        load_weights(args.out, policy)
        save_checkpoint(args.export, policy, config(args), {"steps": ppo.num_timesteps})
    print(f"pusher: {args.export or args.out} after {ppo.num_timesteps:,} steps")


if __name__ == "__main__":
    command(main, "pusher")
