"""The one training loop.

Everything random in step s (the batch, dropout, codebook restarts) is drawn from generators seeded by (seed,
s). There is no random state to save, so a resumed run is the uninterrupted one, bit for bit on a CPU; nor can
an evaluation in between change anything.

Ctrl-C and SIGTERM finish the step, write a checkpoint and stop; a second one stops at once.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import time
from collections.abc import Callable, Iterator
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
from tqdm import tqdm

from worldmodel.training.logging import Meter, StopSignal, log_on_disk, log_settings
from worldmodel.utils.checkpoint import (
    check_same_config,
    checkpoints,
    load_optimizer,
    load_weights,
    read_checkpoint,
    restore_newest,
    save_checkpoint,
)
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, peak_flops, resolve_precision, verified_precision
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.settings import Count, NotNegative, Positive, Seed, Settings

Batch = dict[str, Tensor]
Sample = Callable[[np.random.Generator, int], dict[str, np.ndarray]]
"""A batch from the random numbers of a step, and its number."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Settings):
    """How a model is trained: Adam with betas 0.9 and 0.999."""

    steps: Positive = 100_000
    batch_size: Positive = 32
    """Clips of a step."""
    learning_rate: NotNegative = 3e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: as it is, or down to zero at the last step."""
    warmup_steps: Count = 0
    """Steps of a linear rise at the start."""
    max_grad_norm: NotNegative = 1.0
    """Largest norm of the gradient."""
    precision: Precision = "auto"
    """Of autocast; "auto" tries bfloat16 on the first step's clips, when a run begins and when it goes on."""
    seed: Seed = 0
    max_minutes: NotNegative = 0
    """Stop after so long, with a checkpoint; 0 for no limit."""
    log_every: Positive = 20
    eval_every: Positive = 500
    save_every: Positive = 500
    keep_checkpoints: Positive = 2
    """How many of the last ones stay on disk: a damaged one is not the end of a run."""

    def settings(self) -> dict[str, Any]:
        """What makes two runs the same run: all but how often it is looked at."""
        looks = ("max_minutes", "log_every", "eval_every", "save_every", "keep_checkpoints")
        return {k: v for k, v in asdict(self).items() if k not in looks}


def keep_freed_memory() -> None:
    """Tell glibc to keep what it has freed.

    By default it returns big blocks to the system and faults every page in again at the next step, which costs up to
    40% of training on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never trim the heap


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(device, precision) == "bfloat16")


def learning_rate_at(config: TrainerConfig, step: int) -> float:
    """The rate of step `step`, counted from 0."""
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
    evaluate: Callable[[SummaryWriter, int], None] | None = None,
    restart: bool = False,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Train to the last step, or from where the run in `out` stopped.

    `sample` draws a batch of arrays, the clips first, `loss` turns it into scalars with "loss" among them, `settings`
    are what the checkpoint carries as its config (with the model's under "model"), `evaluate` writes what it likes now
    and then. `state` has tensors that go from step to step: `loss` returns each anew under its name, and checkpoints
    keep them.
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
            shutil.rmtree(out / "log", ignore_errors=True)  # of a run that is gone

        keep = config.keep_checkpoints if step else 1  # none of a run that is gone

        def save() -> None:
            nonlocal keep
            save_checkpoint(out, model, settings, {"step": step}, optimizer, keep, state)
            keep = config.keep_checkpoints

        started = time.monotonic()
        figures = partial(trial_step, model, loss, sample, config, step)
        config = replace(config, precision=verified_precision(str(out), device, config.precision, figures))
        meter = Meter(peak_flops(str(device), config.precision))
        with (
            StopSignal() as stop,
            log_on_disk(out),
            SummaryWriter(str(out / "log"), purge_step=step + 1 if step else 0) as writer,
            tqdm(total=config.steps, initial=step, unit=" clips", unit_scale=config.batch_size, desc=out.name) as bar,
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
                    bar.set_postfix({"loss": f"{meter.log(writer, step, learning_rate_at(config, step - 1)):.4f}"})
                if evaluate is not None and (step % config.eval_every == 0 or step == config.steps):
                    with meter.paused():
                        model.eval()
                        evaluate(writer, step)
                out_of_time = config.max_minutes and time.monotonic() - started > 60 * config.max_minutes
                if stop.requested or out_of_time or step % config.save_every == 0 or step == config.steps:
                    save()
                if stop.requested:
                    raise KeyboardInterrupt
                if out_of_time and step < config.steps:
                    raise UserError(
                        f"{out}: time is up after step {step:,} of {config.steps:,}; "
                        "run it again, without --restart, to go on"
                    )


def resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, out: Path, settings: dict[str, Any], state: dict[str, Tensor]
) -> int:
    """Load what is there, if it is the same run; returns the number of steps done."""
    if not checkpoints(out):
        return 0
    restore_newest(out)
    check_same_config(out, settings)
    load_weights(out, model)
    load_optimizer(out, optimizer)
    found = read_checkpoint(out)
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
    """One step of Adam; returns the loss, its parts and the gradient's norm."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(config, step)
    values = backward(model, loss, batch, config, step)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    if not (values["loss"] + norm).isfinite():
        raise UserError(
            f"the loss is {values['loss'].item()} and its gradient {norm.item()} at step {step}; run the same command "
            "again, which goes on from the last checkpoint; if it comes again, --restart with a lower learning rate"
        )
    optimizer.step()
    return values | {"grad_norm": norm}


def backward(
    model: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], batch: Batch, config: TrainerConfig, step: int
) -> dict[str, Tensor]:
    """The loss and its parts; its gradient is left in the parameters."""
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
    """Loss and gradient of half of a step's clips; weights, buffers and random numbers stay as they are.

    Of half, because that takes no more memory in float32 than all of them do in bfloat16.
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
    """The batch of a step."""
    arrays = sample(np.random.default_rng([config.seed, step]), step)
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def prefetch_batches(sample: Sample, config: TrainerConfig, first: int) -> Iterator[Batch]:
    """The batches of the steps from `first` on; the next one is read while the current one is used."""
    with ThreadPoolExecutor(1) as pool:
        next_batch = pool.submit(read_batch, sample, config, first)
        for step in range(first, config.steps):
            batch = next_batch.result()
            if step + 1 < config.steps:
                next_batch = pool.submit(read_batch, sample, config, step + 1)
            yield batch


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; the mode is put back afterwards."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)
