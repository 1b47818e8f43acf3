"""The training loop of all stages.

Everything random in step s (the batch, dropout, resets of codes) comes from generators seeded with (seed, s). There is
no random state to save, so a resumed run equals an uninterrupted one, bit for bit on a CPU. Evaluations in between do
not change the result either.

A batch may be split over ranks (training/distributed.py) and into parts (`accumulate`); the step stays the same, up to
rounding. Only dropout and code noise differ: each part draws them from a seed of its own.

Ctrl-C and SIGTERM finish the step, write a checkpoint and stop; a second one stops at once.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worldmodel.training.distributed import (
    Loss,
    any_rank,
    check_equal,
    check_gpus,
    code_digest,
    first_rank_first,
    gather,
    on_first_rank,
    wrap_loss,
)
from worldmodel.training.logging import Meter, StopSignal, log_on_disk, log_settings, open_log
from worldmodel.training.sharding import shard_moments, whole_tensors, whole_weights
from worldmodel.training.step import Batch, Sample, prefetch_batches, train_step, trial_clips, trial_step
from worldmodel.training.trainer_config import TrainerConfig, learning_rate_at
from worldmodel.training.verdicts import judge_loss
from worldmodel.utils.checkpoint import Checkpoint, checkpoints, commit, restore_newest, unique_tensors
from worldmodel.utils.compatibility import check_same_config
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, peak_flops, resolve_precision, verified_precision
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.memory import keep_freed_memory
from worldmodel.utils.progress import Progress
from worldmodel.utils.ranks import n_ranks, of_all_ranks, rank

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Evaluate = Callable[["SummaryWriter", int], Sequence[str] | None]
"""Writes held-out scores of a step to the log, and returns verdicts in words."""


def fit(
    model: nn.Module,
    loss: Loss,
    sample: Sample,
    config: TrainerConfig,
    out: Path,
    settings: dict[str, Any],
    evaluate: Evaluate | None = None,
    restart: bool = False,
    state: dict[str, Tensor] | None = None,
    data: dict[str, int] | None = None,
) -> None:
    """Train a model to the last step, resuming the run in `out` if there is one.

    A complete run continues if `config` has more steps. The learning rate is then that of a run that had this number of
    steps from the beginning, so a cosine schedule restarts higher than it ended.

    Args:
        model: The model, on its device; trained in place.
        loss: Turns a batch into scalars, one of them named "loss". The others are logged.
        sample: Draws this rank's share (`rank_share`) of a batch of arrays (b, ...) with a generator and the number of
            the step.
        config: How to train.
        out: Folder of checkpoints and log.
        settings: Config to store in the checkpoint, with the model's under "model". A run resumes only if it is equal.
        evaluate: Called on the first rank with the log and the step every `eval_every` steps and at the end. What it
            returns at the end is printed: its verdicts, in words.
        restart: Start over and overwrite the run in `out`.
        state: Tensors (b, ...) that a run carries from step to step, this rank's share of them. `loss` finds them in
            the batch and returns the new value of each under its name. Checkpoints keep them.
        data: Checksums of the data, which all ranks must have.

    Raises:
        UserError: If `out` holds a run with other settings, another process writes to it, the loss is not finite, time
            is up, the disk is full, or ranks differ.
        KeyboardInterrupt: After the checkpoint that Ctrl-C or SIGTERM asks for.
    """
    keep_freed_memory()
    state = {} if state is None else state
    check_split(model, config)
    with on_first_rank(lambda: folder_lock(out)):
        settings = settings | {"trainer": config.settings()}
        check_ranks(model, config, out, settings, data)
        with first_rank_first():
            found = None if restart else resume(model, out, settings, state)
        step = found.steps("step") if found else 0
        check_equal(step=step)
        if step >= config.steps:
            print(f"{out}: already trained for {step:,} steps")
            return
        if found and not rank() and found.config["trainer"]["steps"] < config.steps:
            rate = learning_rate_at(config, step)
            print(f"{out}: goes on from step {step:,} to {config.steps:,}, with a learning rate of {rate:.2g} at first")
        run = Training(model, loss, sample, config, out, settings, evaluate, state, step)
        if found:
            found.fill_optimizer(run.optimizer)
            shard_moments(run.optimizer)
            del found
        verdicts = run.steps()
        if not rank():
            for verdict in verdicts:
                print(f"{out}: {verdict}")


@dataclass
class Training:
    """A run between two of its steps. The fields are the arguments of `fit`; `step` is the number of steps done."""

    model: nn.Module
    loss: Loss
    sample: Sample
    config: TrainerConfig
    out: Path
    settings: dict[str, Any]
    evaluate: Evaluate | None
    state: dict[str, Tensor]
    step: int
    losses: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started, self.device = time.monotonic(), next(self.model.parameters()).device
        self.loss = wrap_loss(self.model, self.loss, self.config.compile, self.config.shard)
        self.optimizer = torch.optim.Adam(self.model.parameters(), self.config.learning_rate, fused=True)
        self.keep = self.config.keep_checkpoints if self.step else 1  # the first save drops those of an overwritten run

    def steps(self) -> list[str]:
        """Train to the last step; returns verdicts in words."""
        if self.step == 0 and not rank():
            shutil.rmtree(self.out / "log", ignore_errors=True)  # the log of a run that is overwritten
        self.meter = self.verify_precision()
        first, total, unit = self.step, self.config.steps, self.config.batch_size
        with (
            StopSignal() as stop,
            log_on_disk(self.out),
            on_first_rank(lambda: open_log(self.out / "log", first + 1 if first else 0)) as writer,
            Progress(total=total, initial=first, unit=" clips", unit_scale=unit, desc=self.out.name) as bar,
        ):
            if first == 0 and writer is not None:
                log_settings(writer, self.settings)
            for batch in prefetch_batches(self.sample, self.config, first):
                self.train(batch)
                bar.update()
                if self.is_due(self.config.log_every):
                    self.losses.append(self.meter.log(writer, self.step, learning_rate_at(self.config, self.step - 1)))
                    bar.set_postfix({"loss": f"{self.losses[-1]:.4f}"})
                if self.evaluate is not None and self.is_due(self.config.eval_every):
                    self.judge(writer)
                self.save_or_stop(stop.requested)
        return self.verdicts + judge_loss(self.losses)

    def verify_precision(self) -> Meter:
        """Decide on the precision with a trial step; returns a meter of the speed in that precision."""
        config = self.config
        figures = partial(trial_step, self.model, self.loss, self.sample, config, self.step, state=self.state)
        asked = agreed_precision(self.device, config.precision)  # a trial needs all ranks
        precision = verified_precision(str(self.out), self.device, asked, figures)
        self.config = replace(config, precision=precision)
        meter = Meter(1.0 if rank() else peak_flops(str(self.device), precision))
        if n_ranks() > 1:  # DDP sums gradients in another order at its first step, and while operations are counted
            share = config.batch_size // n_ranks()
            meter.count_flops_of(lambda: figures(precision), share / trial_clips(share, config))
        return meter

    def is_due(self, every: int) -> bool:
        """Whether something that is done every `every` steps, and at the end, is due now."""
        return self.step % every == 0 or self.step == self.config.steps

    def train(self, batch: Batch) -> None:
        """One step."""
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()} | self.state
        with self.meter.count_flops():
            values = train_step(self.model, self.loss, batch, self.optimizer, self.config, self.step)
        self.state.update({name: values.pop(name) for name in self.state})
        self.step += 1
        self.meter.add(values, self.config.batch_size)

    def judge(self, writer: SummaryWriter | None) -> None:
        """Evaluate on the first rank."""
        with self.meter.paused(), whole_weights(self.loss):
            if writer is not None and self.evaluate is not None:
                self.model.eval()
                self.verdicts = list(self.evaluate(writer, self.step) or ())

    def save_or_stop(self, stop: bool) -> None:
        """Save a checkpoint if one is due, and before a signal or the time limit stops the run."""
        config = self.config
        late = config.max_minutes > 0 and time.monotonic() - self.started > 60 * config.max_minutes
        stopping, out_of_time = any_rank(stop, late)
        if stopping or out_of_time or self.is_due(config.save_every):
            self.save()
        if stopping:
            raise KeyboardInterrupt
        if out_of_time and self.step < config.steps:
            raise UserError(
                f"{self.out}: time is up after step {self.step:,} of {config.steps:,}; "
                "run it again, without --restart, to resume"
            )

    def save(self) -> None:
        """Write a checkpoint, on the first rank."""
        lanes = {name: gather(tensor) for name, tensor in self.state.items()}
        weights, moments = whole_tensors(unique_tensors(self.model)), self.optimizer.state_dict()["state"]
        moments = {i: whole_tensors(of) for i, of in moments.items()}
        if not rank():
            commit(self.out, weights, moments, self.settings, {"step": self.step}, self.keep, lanes)
        self.keep = self.config.keep_checkpoints


def rank_share(config: TrainerConfig) -> slice:
    """The clips of a batch that this rank trains on.

    Raises:
        UserError: If they cannot be divided equally among ranks and parts.
    """
    n, parts = config.batch_size, n_ranks() * config.accumulate
    if n % parts:
        raise UserError(
            f"batch_size = {n} cannot be divided equally among {n_ranks()} ranks with accumulate = "
            f"{config.accumulate}; set batch_size to a multiple of {parts}"
        )
    size = n // n_ranks()
    return slice(rank() * size, (rank() + 1) * size)


def check_split(model: nn.Module, config: TrainerConfig) -> None:
    """Check that a batch can be split as the config says and torchrun has it.

    Raises:
        UserError: If it cannot be divided, there is only one rank to shard over, or the model has batch norms, whose
            statistics would be those of a part.
    """
    rank_share(config)
    if config.shard and n_ranks() == 1:
        raise UserError("trainer.shard spreads a model over ranks; start several with torchrun, or leave it out")
    is_split = n_ranks() * config.accumulate > 1
    if is_split and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError(
            "batch norm takes its statistics from one part of a batch, so a batch cannot be split; train on one rank "
            "with accumulate = 1, or set norm = layer"
        )


def check_ranks(
    model: nn.Module, config: TrainerConfig, out: Path, settings: dict[str, Any], data: dict[str, int] | None
) -> None:
    """Check that all ranks train the same model on the same data; `UserError` if they do not."""
    if n_ranks() > 1:
        check_gpus(next(model.parameters()).device)
        check_equal(**settings | {"trainer": asdict(config), "out": str(out), "data": data, "code": code_digest()})


def agreed_precision(device: torch.device, precision: Precision) -> Precision:
    """The precision that was asked for, or float32 if "auto" means bfloat16 on some ranks only.

    Each rank measures which one is faster, so even equal processors may differ.
    """
    if len(set(of_all_ranks(resolve_precision(device, precision)))) == 1:
        return precision
    print("bfloat16 is not faster on all ranks, so float32 is used", file=sys.stderr)
    return "float32"


def resume(model: nn.Module, out: Path, settings: dict[str, Any], state: dict[str, Tensor]) -> Checkpoint | None:
    """Load the newest checkpoint of the run in `out`, if there is one, except for the optimizer's state.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        UserError: If it is a run with other settings, or all its checkpoints are damaged.
    """
    if not checkpoints(out):
        return None
    found = restore_newest(out)
    check_same_config(out, settings | {"trainer": settings["trainer"] | more_steps(found, settings)})
    found.fill(model)
    for name, tensor in state.items():
        n = len(tensor)
        whole = found.tensor_of_run(name, tensor.new_empty(n * n_ranks(), *tensor.shape[1:]))
        tensor.copy_(whole[rank() * n : (rank() + 1) * n])
    return found


def more_steps(found: Checkpoint, settings: dict[str, Any]) -> dict[str, int]:
    """The number of steps of a complete run that is to go on for more; otherwise empty."""
    done = found.steps("step")
    complete = done == found.config.get("trainer", {}).get("steps")
    return {"steps": done} if complete and settings["trainer"]["steps"] > done else {}
