"""Train the pusher of `BAIRPushing-v0` with Stable-Baselines3's PPO, on object positions instead of frames.

    python train/pusher.py                                                  # writes runs/pushing/policy
    python train/pusher.py --export worldmodel/pretrained/pushing_policy    # and a copy without optimizer state

PPO rather than SAC, because a physics step is cheap compared with an update: SAC learned more per step but less per
minute. An interrupted run resumes with its weights, its optimizer and its learning rate schedule (train/ppo.py).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs import command
from configs.written import Written
from envs.pusher import KIND, PushTask, make_policy
from train.ppo import CheckpointCallback, check_ppo_args, last_step, learn, ppo_settings, resume
from worldmodel.utils.checkpoint import checkpoints, load_weights, save_checkpoint
from worldmodel.utils.extras import extra
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.settings import Channels, Count, Fraction, NotNegative, Positive, Seed, Settings

with extra("sb3"):
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Train a policy that pushes objects to goals."""

    out: Path = Path("runs/pushing/policy")
    """Folder for the policy and its TensorBoard log; an unfinished run in it resumes."""
    export: Path | None = None
    """Folder for a copy of the final policy without optimizer state."""
    total_timesteps: Positive = 1_200_000
    """Environment steps of the whole training; the learning rate falls to zero over them. A larger number continues a
    complete run."""
    stop_at_step: Count = 0
    """Stop after this environment step, to resume later; 0 trains to the end."""
    hidden_dim: Channels = 128
    """Width of the two hidden layers of the policy and of the value function."""
    num_envs: Positive = 16
    """Environments, stepped one after the other in one process."""
    n_steps: Positive = 128
    """Steps of each environment between two PPO updates."""
    n_epochs: Positive = 10
    """Passes over each batch of experience."""
    learning_rate: NotNegative = 1e-3
    """Learning rate of Adam; it falls linearly to zero."""
    gamma: Fraction = 0.95
    """Discount factor; a push takes about ten steps."""
    save_every: Positive = 20_000
    """Environment steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Number of latest checkpoints to keep, so that a run survives a damaged one."""
    seed: Seed = 0
    """Seed of the episodes, the initial weights and the actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ppo_args(self)


def settings(args: Args) -> dict[str, Any]:
    """The settings that must be equal to resume a run; paths and stops may differ."""
    elsewhere = ("out", "export", "stop_at_step", "save_every", "keep_checkpoints")
    return {k: v for k, v in asdict(args).items() if k not in elsewhere}


def config(args: Args) -> dict[str, Any]:
    return {"kind": KIND, "training": settings(args)}


def save(args: Args, ppo: PPO, steps: int) -> None:
    save_checkpoint(args.out, ppo.policy, config(args), {"steps": steps}, ppo.policy.optimizer, args.keep_checkpoints)


def make_ppo(args: Args, last: int) -> PPO:
    return PPO(
        "MlpPolicy",
        VecMonitor(DummyVecEnv([PushTask] * args.num_envs)),
        **ppo_settings(args, last),
        policy_kwargs={"net_arch": [args.hidden_dim, args.hidden_dim], "log_std_init": -0.5},
        device="cpu",
    )


def main(args: Args) -> Written:
    torch.set_num_threads(1)  # networks this small are slower with more threads
    last = last_step(args)
    with folder_lock(args.out):
        ppo = make_ppo(args, last)
        if checkpoints(args.out):
            resume(ppo, args.out, config(args), args.seed)
        learn(ppo, CheckpointCallback(lambda steps: save(args, ppo, steps), args.save_every, ppo.num_timesteps), last)
    if args.export is not None:
        policy = make_policy(args.hidden_dim)
        load_weights(args.out, policy)
        with folder_lock(args.export):
            save_checkpoint(args.export, policy, config(args), {"steps": ppo.num_timesteps})
    print(f"finished after {ppo.num_timesteps:,} steps")
    return Written(args.export or args.out, "collect/pushing.py", {"policy": args.export or args.out})


if __name__ == "__main__":
    command(main, "pusher")
