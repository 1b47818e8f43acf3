"""What the PPO scripts share: learning rate schedule, checkpoints and resuming.

PPO alternates between a rollout and an update. A checkpoint is always taken right after a complete update. A checkpoint
between rollout and update would lose that update, and one in the middle of an update would repeat part of it. So a run
that stops, at `stop_at_step` or by Ctrl-C, and resumes has the same number of updates, optimizer state and learning
rates as an uninterrupted run. Its rollouts differ: the current episodes are lost, and the environments restart with
different seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from worldmodel.training.logging import log_on_disk
from worldmodel.training.verdicts import judge_returns
from worldmodel.utils.checkpoint import restore_newest
from worldmodel.utils.compatibility import check_same_config
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra
from worldmodel.utils.progress import Progress

with extra("sb3"):
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
with extra("tensorboard"):
    import torch.utils.tensorboard  # noqa: F401 - Stable-Baselines3 writes its log with it


def linear_schedule(rate: float, steps: int, last: int) -> Callable[[float], float]:
    """An SB3 schedule that falls linearly from `rate` to zero over `steps`, for a run that stops at step `last`.

    SB3 calls it with the fraction of the run that is left, which is negative if the last rollout passes the end.
    """
    return lambda left: rate * max(0.0, 1 - (1 - left) * last / steps)


N_MINIBATCHES = 4
"""Minibatches of an update."""


def check_ppo_args(args: Any) -> None:
    """`UserError` for rollouts too small for PPO, which normalizes advantages within minibatches of 2 steps or more."""
    if (size := args.num_envs * args.n_steps) < 2 * N_MINIBATCHES:
        raise UserError(
            f"num_envs * n_steps must be at least {2 * N_MINIBATCHES}, not {size}: an update has {N_MINIBATCHES} "
            "minibatches of at least 2 steps"
        )


def last_step(args: Any) -> int:
    """The step at which a call of a script stops."""
    return min(args.stop_at_step or args.total_timesteps, args.total_timesteps)


def ppo_settings(args: Any, last: int) -> dict[str, Any]:
    """The arguments of PPO that the scripts have in common, for a call that stops at step `last`."""
    return {name: getattr(args, name) for name in ("n_steps", "n_epochs", "gamma", "seed")} | {
        "batch_size": args.num_envs * args.n_steps // N_MINIBATCHES,
        "learning_rate": linear_schedule(args.learning_rate, args.total_timesteps, last),
        "tensorboard_log": str(args.out),
    }


class ProgressCallback(BaseCallback):
    """Moves a progress bar."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self.bar = bar

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True


class ReturnsCallback(BaseCallback):
    """Keeps the returns of the finished episodes of each environment."""

    def __init__(self, num_envs: int) -> None:
        super().__init__()
        self.returns = [list[float]() for _ in range(num_envs)]

    def _on_step(self) -> bool:
        for returns, info in zip(self.returns, self.locals["infos"], strict=True):
            if "episode" in info:
                returns.append(info["episode"]["r"])
        return True


class CheckpointCallback(BaseCallback):
    """Saves a checkpoint every `every` steps and at the end, also after Ctrl-C."""

    def __init__(self, save: Callable[[int], None], every: int, saved: int) -> None:
        super().__init__()
        self.save, self.every = save, every
        self.learned_steps = self.saved_steps = saved
        """Steps included in the last update, and in the last checkpoint."""

    def _remember(self) -> None:
        """Copy weights and optimizer state after a complete update.

        Raises:
            FloatingPointError: The update made a weight infinite or NaN.
        """
        policy = self.model.policy
        if not all(weight.isfinite().all() for weight in policy.parameters()):
            raise FloatingPointError
        self.learned_steps = self.model.num_timesteps
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
        """Save the last complete update if it is not on disk yet; a partial update is undone."""
        if self.learned_steps > self.saved_steps:
            weights, optimizer = self.last_update
            self.model.policy.load_state_dict(weights)
            self.model.policy.optimizer.load_state_dict(optimizer)
            self.write()


def resume(ppo: PPO, folder: Path, config: dict[str, Any], seed: int) -> None:
    """Resume from the newest checkpoint. The seed depends on the step, so that episodes do not repeat.

    A complete run may go on for more steps. Its learning rate then falls along the line to the new end.

    Raises:
        UserError: Another setting differs from the config of the checkpoint.
    """
    found = restore_newest(folder)
    training, done = config["training"], found.config["training"]["total_timesteps"]
    if found.steps("steps") >= done < training["total_timesteps"]:
        training = training | {"total_timesteps": done}
    check_same_config(folder, config | {"training": training})
    found.fill(ppo.policy)
    found.fill_optimizer(ppo.policy.optimizer)
    ppo.num_timesteps = found.steps("steps")
    ppo.set_random_seed(seed + ppo.num_timesteps)


def learn(ppo: PPO, saver: CheckpointCallback, last: int) -> None:
    """Train until step `last` and save, also after Ctrl-C. A run from its first step ends with a verdict.

    Raises:
        UserError: The policy diverged; nothing is saved after its last checkpoint.
    """
    done, returns = ppo.num_timesteps, ReturnsCallback(ppo.n_envs)
    try:
        if done < last:
            folder = Path(ppo.tensorboard_log or "")
            with log_on_disk(folder), Progress(total=last, initial=done, unit=" steps", desc=folder.name) as bar:
                every = [saver, ProgressCallback(bar), returns]
                ppo.learn(last - done, every, reset_num_timesteps=done == 0, tb_log_name="log")
    except (FloatingPointError, ValueError) as error:  # torch's distributions refuse NaN logits
        if isinstance(error, ValueError) and "to satisfy the constraint" not in str(error):
            raise
        saver.learned_steps = saver.saved_steps  # do not save diverged weights
        steps = ppo.num_timesteps
        raise UserError(f"the policy diverged within {steps:,} steps; run again with a lower --learning-rate") from None
    finally:
        saver.finish()
    if not done:
        for verdict in judge_returns(returns.returns):
            print(f"{ppo.tensorboard_log}: {verdict}")
