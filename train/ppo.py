"""What the PPO runs here share: how their learning rate falls, what their checkpoints hold, and how they go on.

PPO plays for a while, then updates. A checkpoint holds every update from the steps that it counts, and none from
others: one that is written between playing and updating would skip that update for good, and one that is written amid
an update would make it again. So a run that stops, at `stop_at_step` or by Ctrl-C, and goes on makes the updates of one
in a single go, with its optimizer's state and its learning rates. What is played after the cut is other: the episodes
in play are lost, and the environments begin again with other seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from worldmodel.training.logging import log_on_disk
from worldmodel.utils.checkpoint import load_optimizer, load_weights, read_checkpoint, restore_newest
from worldmodel.utils.errors import UserError


def linear_schedule(rate: float, steps: int, last: int) -> Callable[[float], float]:
    """A rate that falls linearly to zero over `steps`, as SB3 asks for it in a run that ends at step `last`.

    SB3 gives the share of that run which is left. It is below zero where the last rollout passes the end.
    """
    return lambda left: rate * max(0.0, 1 - (1 - left) * last / steps)


N_MINIBATCHES = 4
"""Into which an update divides what was played."""


def check_ppo_args(args: Any) -> None:
    """`UserError` for sizes of which PPO makes nothing; it compares the steps of a part with one another."""
    if (size := args.num_envs * args.n_steps) < 2 * N_MINIBATCHES:
        raise UserError(
            f"num_envs * n_steps must be at least {2 * N_MINIBATCHES}, not {size}: an update has {N_MINIBATCHES} parts"
        )


class CheckpointCallback(BaseCallback):
    """A checkpoint every so many steps and at the end, Ctrl-C included."""

    def __init__(self, save: Callable[[int], None], every: int, saved: int) -> None:
        super().__init__()
        self.save, self.every = save, every
        self.learned_steps = self.saved_steps = saved
        """The steps whose updates are made, and those that are on disk."""

    def _remember(self) -> None:
        """Remember weights and optimizer as they are now that an update is whole."""
        policy, self.learned_steps = self.model.policy, self.model.num_timesteps
        self.last_update = deepcopy((policy.state_dict(), policy.optimizer.state_dict()))

    def _on_rollout_start(self) -> None:
        self._remember()
        if self.learned_steps - self.saved_steps >= self.every:
            self.write()

    def _on_training_end(self) -> None:
        self._remember()

    def _on_step(self) -> bool:
        return True

    def write(self) -> None:
        self.save(self.learned_steps)
        self.saved_steps = self.learned_steps

    def finish(self) -> None:
        """Save what is not on disk yet; half an update is taken back."""
        if self.learned_steps > self.saved_steps:
            weights, optimizer = self.last_update
            self.model.policy.load_state_dict(weights)
            self.model.policy.optimizer.load_state_dict(optimizer)
            self.write()


def resume(ppo: PPO, folder: Path, seed: int) -> None:
    """Go on from a checkpoint, with other seeds than it began with."""
    restore_newest(folder)
    load_weights(folder, ppo.policy)
    load_optimizer(folder, ppo.policy.optimizer)
    ppo.num_timesteps = read_checkpoint(folder).steps("steps")
    ppo.set_random_seed(seed + ppo.num_timesteps)


def learn(ppo: PPO, saver: CheckpointCallback, last: int) -> None:
    """Train until step `last`, and save however it ends, but for a `UserError` if the policy diverges."""
    done = ppo.num_timesteps
    try:
        if done < last:
            with log_on_disk(Path(ppo.tensorboard_log or "")):
                ppo.learn(last - done, saver, reset_num_timesteps=done == 0, tb_log_name="log", progress_bar=True)
    except ValueError as error:  # of torch's distributions, which no number suits that the policy gives
        if "to satisfy the constraint" not in str(error):
            raise
        saver.learned_steps = saver.saved_steps  # nothing is kept that has diverged
        steps = ppo.num_timesteps
        raise UserError(f"the policy diverged within {steps:,} steps; lower --learning-rate and run it again") from None
    finally:
        saver.finish()
