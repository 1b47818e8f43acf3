"""How a model is trained: the settings of every training, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from worldmodel.utils.hardware import Precision
from worldmodel.utils.settings import AboveZero, Count, NotNegative, Positive, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Settings):
    """How a model is trained, by Adam with betas 0.9 and 0.999."""

    steps: Positive = 100_000
    """Number of training steps in all. A larger number continues a complete run, from the learning rate that the
    schedule for the larger number has at that step."""
    batch_size: Positive = 32
    """Number of clips of a step, of all ranks together."""
    accumulate: Positive = 1
    """Number of parts of a rank's clips that go through the model one after another, to save memory. The step stays the
    same."""
    learning_rate: NotNegative = 3e-4
    """Learning rate after the warm-up."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or decaying to zero at the last step along a cosine."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly at the start; 0 for no warm-up."""
    max_grad_norm: AboveZero = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    precision: Precision = "auto"
    """Precision of autocast. auto takes bfloat16 where the hardware is fast at it, if loss and gradient agree with
    float32 on a trial step at the start of the run and whenever it resumes."""
    shard: bool = False
    """Spread weights, gradients and optimizer state over the ranks with FSDP2, for a model that is too large for one
    GPU. Needs torchrun."""
    compile: bool = False
    """Compile the model with torch.compile, which takes minutes at the start and is faster afterwards on a GPU."""
    seed: Seed = 0
    """Seed of the initialization and of every step's batch and dropout."""
    max_minutes: NotNegative = 0
    """Stop with a checkpoint after this many minutes; 0 for no limit."""
    log_every: Positive = 20
    """Steps from one entry of the training log to the next."""
    eval_every: Positive = 500
    """Steps from one evaluation to the next; the last step is always evaluated."""
    save_every: Positive = 500
    """Steps from one checkpoint to the next; the last step is always saved."""
    keep_checkpoints: Positive = 2
    """Number of newest checkpoints to keep, so that a run survives a damaged file."""

    def settings(self) -> dict[str, Any]:
        """The settings that identify a run: all but how it is computed, and how often it logs, evaluates and saves."""
        left_out = (
            "accumulate",
            "shard",
            "compile",
            "max_minutes",
            "log_every",
            "eval_every",
            "save_every",
            "keep_checkpoints",
        )
        return {k: v for k, v in asdict(self).items() if k not in left_out}


def learning_rate_at(config: TrainerConfig, step: int) -> float:
    """The learning rate of step `step`, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
