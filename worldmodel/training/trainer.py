"""The training loop of all stages.

Everything random in step s (the batch, dropout, resets of codes) comes from generators seeded with (seed, s). There is
no random state to save, so a resumed run equals an uninterrupted one, bit for bit on a CPU. Evaluations in between do
not change the result either.

Ctrl-C and SIGTERM finish the step, write a checkpoint and stop; a second one stops at once.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from worldmodel.training.logging import Meter, StopSignal, log_on_disk, log_settings
from worldmodel.training.verdicts import judge_loss
from worldmodel.utils.checkpoint import checkpoints, restore_newest, save_checkpoint
from worldmodel.utils.compatibility import check_same_config
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, peak_flops, resolve_precision, verified_precision
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Count, NotNegative, Positive, Seed, Settings

Batch = dict[str, Tensor]
Sample = Callable[[np.random.Generator, int], dict[str, np.ndarray]]
"""A batch from the random numbers of a step, and its number."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Settings):
    """How a model is trained, by Adam with betas 0.9 and 0.999."""

    steps: Positive = 100_000
    """Number of training steps in all."""
    batch_size: Positive = 32
    """Number of clips of a step."""
    learning_rate: NotNegative = 3e-4
    """Learning rate after the warm-up."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or decaying to zero at the last step along a cosine."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly at the start; 0 for no warm-up."""
    max_grad_norm: NotNegative = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    precision: Precision = "auto"
    """Precision of autocast. auto takes bfloat16 where the hardware is fast at it, if loss and gradient agree with
    float32 on a trial step at the start of the run and whenever it resumes."""
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
        """The settings that identify a run: all except how often it logs, evaluates, saves and stops."""
        looks = ("max_minutes", "log_every", "eval_every", "save_every", "keep_checkpoints")
        return {k: v for k, v in asdict(self).items() if k not in looks}


def keep_freed_memory() -> None:
    """Make glibc keep freed memory.

    By default it returns large blocks to the system, and each page faults again at the next step. This costs up to 40%
    of the training time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never trim the heap


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast for a precision on a device; disabled for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(device, precision) == "bfloat16")


def learning_rate_at(config: TrainerConfig, step: int) -> float:
    """The learning rate of step `step`, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    model: nn.Module,
    loss: Callable[[Batch], dict[str, Tensor]],
    sample: Sample,
    config: TrainerConfig,
    out: Path,
    settings: dict[str, Any],
    evaluate: Callable[[SummaryWriter, int], Sequence[str] | None] | None = None,
    restart: bool = False,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Train a model to the last step, resuming the run in `out` if there is one.

    Args:
        model: The model, on its device; trained in place.
        loss: Turns a batch into scalars, one of them named "loss". The others are logged.
        sample: Draws a batch of arrays (b, ...) with a generator and the number of the step.
        config: How to train.
        out: Folder of checkpoints and log.
        settings: Config to store in the checkpoint, with the model's under "model". A run resumes only if it is equal.
        state: Tensors that a run carries from step to step. `loss` returns each of them anew under its name, and
            checkpoints keep them.
        evaluate: Called with the log and the step every `eval_every` steps and at the end. What it returns at the end
            is printed: its verdicts, in words.
        restart: Start over and overwrite the run in `out`.

    Raises:
        UserError: If `out` holds a run with other settings, another process writes to it, the loss is not finite, time
            is up, or the disk is full.
        KeyboardInterrupt: After the checkpoint that Ctrl-C or SIGTERM asks for.
    """
    keep_freed_memory()
    state = {} if state is None else state
    with folder_lock(out):
        device = next(model.parameters()).device
        settings = settings | {"trainer": config.settings()}
        optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
        step = 0 if restart else resume(model, optimizer, out, settings, state)
        if step >= config.steps:
            print(f"{out}: already trained for {step:,} steps")
            return

        if step == 0:
            shutil.rmtree(out / "log", ignore_errors=True)  # the log of a run that is overwritten

        keep = config.keep_checkpoints if step else 1  # the first save drops checkpoints of an overwritten run

        def save() -> None:
            nonlocal keep
            save_checkpoint(out, model, settings, {"step": step}, optimizer, keep, state)
            keep = config.keep_checkpoints

        started = time.monotonic()
        figures = partial(trial_step, model, loss, sample, config, step)
        config = replace(config, precision=verified_precision(str(out), device, config.precision, figures))
        meter, verdicts, losses = Meter(peak_flops(str(device), config.precision)), list[str](), list[float]()
        with (
            StopSignal() as stop,
            log_on_disk(out),
            SummaryWriter(str(out / "log"), purge_step=step + 1 if step else 0) as writer,
            Progress(
                total=config.steps, initial=step, unit=" clips", unit_scale=config.batch_size, desc=out.name
            ) as bar,
        ):
            if step == 0:
                log_settings(writer, settings)
            for batch in prefetch_batches(sample, config, step):
                with meter.count_flops():
                    values = train_step(
                        model, loss, {k: v.to(device) for k, v in batch.items()}, optimizer, config, step
                    )
                state.update({name: values.pop(name) for name in state})
                step += 1
                bar.update()
                meter.add(values, config.batch_size)
                if step % config.log_every == 0 or step == config.steps:
                    losses.append(meter.log(writer, step, learning_rate_at(config, step - 1)))
                    bar.set_postfix({"loss": f"{losses[-1]:.4f}"})
                if evaluate is not None and (step % config.eval_every == 0 or step == config.steps):
                    with meter.paused():
                        model.eval()
                        verdicts = list(evaluate(writer, step) or ())
                out_of_time = config.max_minutes and time.monotonic() - started > 60 * config.max_minutes
                if stop.requested or out_of_time or step % config.save_every == 0 or step == config.steps:
                    save()
                if stop.requested:
                    raise KeyboardInterrupt
                if out_of_time and step < config.steps:
                    raise UserError(
                        f"{out}: time is up after step {step:,} of {config.steps:,}; "
                        "run it again, without --restart, to resume"
                    )
        for verdict in verdicts + judge_loss(losses):
            print(f"{out}: {verdict}")


def resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, out: Path, settings: dict[str, Any], state: dict[str, Tensor]
) -> int:
    """Load the newest checkpoint of the run in `out`, if there is one.

    Returns:
        The number of steps done.

    Raises:
        UserError: If it is a run with other settings, or all its checkpoints are damaged.
    """
    if not checkpoints(out):
        return 0
    found = restore_newest(out)
    check_same_config(out, settings)
    found.fill(model)
    found.fill_optimizer(optimizer)
    for name, tensor in state.items():
        tensor.copy_(found.tensor_of_run(name, tensor))
    return found.steps("step")


def train_step(
    model: nn.Module,
    loss: Callable[[Batch], dict[str, Tensor]],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    config: TrainerConfig,
    step: int,
) -> dict[str, Tensor]:
    """One step of Adam.

    Returns:
        The scalars of `loss` and the norm of the gradient.

    Raises:
        UserError: If loss or gradient is not finite; the weights are then unchanged.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(config, step)
    values = backward(model, loss, batch, config, step)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    if not (values["loss"] + norm).isfinite():
        raise UserError(
            f"the loss is {values['loss'].item()} and the norm of its gradient {norm.item()} at step {step}; run the "
            "same command again to resume from the last checkpoint, and if it happens again, use --restart with a "
            "lower learning rate"
        )
    optimizer.step()
    return values | {"grad_norm": norm}


def backward(
    model: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], batch: Batch, config: TrainerConfig, step: int
) -> dict[str, Tensor]:
    """Compute the scalars of `loss`; the gradient is left in the parameters."""
    model.train()
    torch.manual_seed(int(np.random.SeedSequence([config.seed, step, 1]).generate_state(1)[0]))
    with autocast(next(model.parameters()).device, config.precision):
        values = loss(batch)
    model.zero_grad()
    values["loss"].backward()
    return {k: v.detach() for k, v in values.items()}


def trial_step(
    model: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], sample: Sample, config: TrainerConfig, step: int,
    precision: Precision,
) -> dict[str, Tensor]:  # fmt: skip
    """Loss and gradient of half a step's clips; weights, buffers and random state are left unchanged.

    Half the clips in float32 take no more memory than all of them in bfloat16.
    """
    device = next(model.parameters()).device
    batch = {k: v[: -(-len(v) // 2)].to(device) for k, v in read_batch(sample, config, step).items()}
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        value = backward(model, loss, batch, replace(config, precision=precision), step)["loss"]
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    with torch.no_grad():
        for buffer, old in zip(model.buffers(), before, strict=True):
            buffer.copy_(old)
    return {"loss": value, "gradient": gradient}


def read_batch(sample: Sample, config: TrainerConfig, step: int) -> Batch:
    """Draw the batch of a step."""
    arrays = sample(np.random.default_rng([config.seed, step]), step)
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def prefetch_batches(sample: Sample, config: TrainerConfig, first: int) -> Iterator[Batch]:
    """Yield the batches of the steps from `first` on; a thread reads the next one while the current one is used."""
    with ThreadPoolExecutor(1) as pool:
        next_batch = pool.submit(read_batch, sample, config, first)
        for step in range(first, config.steps):
            batch = next_batch.result()
            if step + 1 < config.steps:
                next_batch = pool.submit(read_batch, sample, config, step + 1)
            yield batch


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the previous mode is restored afterwards."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)
