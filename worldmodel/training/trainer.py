"""The training loop of all stages.

Everything random in step s (the batch, dropout, resets of codes) comes from generators seeded with (seed, s). There is
no random state to save, so a resumed run equals an uninterrupted one, bit for bit on a CPU. Evaluations in between do
not change the result either.

A batch may be split over ranks (training/distributed.py) and into parts (`accumulate`); the step stays the same, to
rounding. Only dropout and code noise differ: each part draws them from a seed of its own.

Ctrl-C and SIGTERM finish the step, write a checkpoint and stop; a second one stops at once.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np
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
    gradients_apart,
    mean_over_ranks,
    on_first_rank,
    share_of_rank,
    wrap_loss,
)
from worldmodel.training.logging import Meter, StopSignal, log_on_disk, log_settings, open_log
from worldmodel.training.sharding import shard_moments, whole, whole_tensors, whole_weights
from worldmodel.training.verdicts import judge_loss
from worldmodel.utils.checkpoint import Checkpoint, checkpoints, commit, restore_newest, unique_tensors
from worldmodel.utils.compatibility import check_same_config
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, peak_flops, resolve_precision, verified_precision
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.progress import Progress
from worldmodel.utils.ranks import Pass, forward_pass, n_ranks, rank
from worldmodel.utils.settings import Count, NotNegative, Positive, Seed, Settings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Batch = dict[str, Tensor]
Sample = Callable[[np.random.Generator, int], dict[str, np.ndarray]]
"""A rank's share of a batch from the random numbers of a step, and its number."""
SEPARABLE: WeakSet[nn.Module] = WeakSet()
"""Models that have been found to ask nothing of the whole batch, so that its parts need no pass before them."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Settings):
    """How a model is trained, by Adam with betas 0.9 and 0.999."""

    steps: Positive = 100_000
    """Number of training steps in all. A larger number makes a complete run go on."""
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
    max_grad_norm: NotNegative = 1.0
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
        looks = (
            "accumulate",
            "shard",
            "compile",
            "max_minutes",
            "log_every",
            "eval_every",
            "save_every",
            "keep_checkpoints",
        )
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
    loss: Loss,
    sample: Sample,
    config: TrainerConfig,
    out: Path,
    settings: dict[str, Any],
    evaluate: Callable[[SummaryWriter, int], Sequence[str] | None] | None = None,
    restart: bool = False,
    state: dict[str, Tensor] | None = None,
    data: dict[str, int] | None = None,
) -> None:
    """Train a model to the last step, resuming the run in `out` if there is one.

    A run that is complete goes on if `config` has more steps. The learning rate is then that of a run of so many steps
    from the beginning, so a cosine schedule begins higher than it ended.

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
            the batch and returns each of them anew under its name, and checkpoints keep them.
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
        device = next(model.parameters()).device
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
        loss = wrap_loss(model, loss, config.compile, config.shard)
        optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
        if found:
            found.fill_optimizer(optimizer)
            shard_moments(optimizer)
            del found

        if step == 0 and not rank():
            shutil.rmtree(out / "log", ignore_errors=True)  # the log of a run that is overwritten

        keep = config.keep_checkpoints if step else 1  # the first save drops checkpoints of an overwritten run

        def save() -> None:
            nonlocal keep
            lanes = {name: gather(tensor) for name, tensor in state.items()}
            weights, moments = whole_tensors(unique_tensors(model)), optimizer.state_dict()["state"]
            moments = {i: whole_tensors(of) for i, of in moments.items()}
            if not rank():
                commit(out, weights, moments, settings, {"step": step}, keep, lanes)
            keep = config.keep_checkpoints

        started = time.monotonic()
        figures = partial(trial_step, model, loss, sample, config, step, state=state)
        config = replace(config, precision=verified_precision(str(out), device, config.precision, figures))
        verdicts, losses = list[str](), list[float]()
        meter = Meter(1.0 if rank() else peak_flops(str(device), config.precision))
        if n_ranks() > 1:  # DDP adds gradients up in another order at its first step, and while operations are counted
            share = config.batch_size // n_ranks()
            meter.count_flops_of(lambda: figures(config.precision), share / trial_clips(share, config))
        with (
            StopSignal() as stop,
            log_on_disk(out),
            on_first_rank(lambda: open_log(out / "log", step + 1 if step else 0)) as writer,
            Progress(
                total=config.steps, initial=step, unit=" clips", unit_scale=config.batch_size, desc=out.name
            ) as bar,
        ):
            if step == 0 and writer is not None:
                log_settings(writer, settings)
            for batch in prefetch_batches(sample, config, step):
                with meter.count_flops():
                    values = train_step(
                        model, loss, {k: v.to(device) for k, v in batch.items()} | state, optimizer, config, step
                    )
                state.update({name: values.pop(name) for name in state})
                step += 1
                bar.update()
                meter.add(values, config.batch_size)
                if step % config.log_every == 0 or step == config.steps:
                    losses.append(meter.log(writer, step, learning_rate_at(config, step - 1)))
                    bar.set_postfix({"loss": f"{losses[-1]:.4f}"})
                if evaluate is not None and (step % config.eval_every == 0 or step == config.steps):
                    with meter.paused(), whole_weights(loss):
                        if writer is not None:
                            model.eval()
                            verdicts = list(evaluate(writer, step) or ())
                late = config.max_minutes > 0 and time.monotonic() - started > 60 * config.max_minutes
                stopping, out_of_time = any_rank(stop.requested, late)
                if stopping or out_of_time or step % config.save_every == 0 or step == config.steps:
                    save()
                if stopping:
                    raise KeyboardInterrupt
                if out_of_time and step < config.steps:
                    raise UserError(
                        f"{out}: time is up after step {step:,} of {config.steps:,}; "
                        "run it again, without --restart, to resume"
                    )
        if not rank():
            for verdict in verdicts + judge_loss(losses):
                print(f"{out}: {verdict}")


def rank_share(config: TrainerConfig) -> slice:
    """The clips of a batch that this rank trains on; `UserError` if the batch cannot be divided equally."""
    return share_of_rank(config.batch_size, config.accumulate)


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
        device = next(model.parameters()).device
        check_gpus(device)
        how = asdict(config) | {"resolved_precision": resolve_precision(device, config.precision)}
        check_equal(**settings | {"trainer": how, "out": str(out), "data": data, "code": code_digest()})


def resume(model: nn.Module, out: Path, settings: dict[str, Any], state: dict[str, Tensor]) -> Checkpoint | None:
    """Load the newest checkpoint of the run in `out`, if there is one, but for the optimizer's state.

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


def train_step(
    model: nn.Module,
    loss: Loss,
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
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))
    if not (values["loss"] + norm).isfinite():
        raise UserError(
            f"the loss is {values['loss'].item()} and the norm of its gradient {norm.item()} at step {step}; run the "
            "same command again to resume from the last checkpoint, and if it happens again, use --restart with a "
            "lower learning rate"
        )
    optimizer.step()
    return values | {"grad_norm": norm}


def backward(model: nn.Module, loss: Loss, batch: Batch, config: TrainerConfig, step: int) -> dict[str, Tensor]:
    """Compute the scalars of `loss`; the gradient is left in the parameters."""
    model.train()
    model.zero_grad()
    n = config.accumulate

    def forward(part: Batch, number: int) -> dict[str, Tensor]:
        seed_step(config.seed, step, number)
        with autocast(next(model.parameters()).device, config.precision):
            return loss(part)

    notes: list[Tensor] = []
    if n > 1 and model not in SEPARABLE:
        with torch.no_grad(), forward_pass(Pass(notes=notes)):
            forward(batch, n * rank())
        if not notes:
            SEPARABLE.add(model)
    found = []
    for i in range(n):
        part = {name: tensor.chunk(n)[i] for name, tensor in batch.items()}
        with nullcontext() if i == n - 1 else gradients_apart(loss):
            with forward_pass(Pass(noted=iter(notes) if n > 1 else None)):
                values = forward(part, n * rank() + i)
            (values["loss"] / n).backward()
        found.append({k: v.detach() for k, v in values.items()})
    return merge(found)


def seed_step(seed: int, step: int, part: int) -> None:
    """Seed the generator of a model for a step, and for a part of the batch."""
    numbers = [seed, step, 1] + [part] * (part > 0)
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def merge(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The values of a whole batch: means of scalars, and clips one after another."""
    if len(parts) == 1:
        return parts[0]
    values = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: torch.cat(v) if v[0].dim() else torch.stack(v).mean() for name, v in values.items()}


def trial_step(
    model: nn.Module, loss: Loss, sample: Sample, config: TrainerConfig, step: int, precision: Precision,
    state: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Loss and gradient of half a step's clips; weights, buffers and random state are left unchanged.

    Half the clips in float32 take no more memory than all of them in bfloat16.
    """
    device = next(model.parameters()).device
    drawn = read_batch(sample, config, step) | (state or {})
    batch = {k: v[: trial_clips(len(v), config)].to(device) for k, v in drawn.items()}
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        value = backward(model, loss, batch, replace(config, precision=precision, accumulate=1), step)["loss"]
    gradient = torch.cat([whole(p.grad).flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    with torch.no_grad():
        for buffer, old in zip(model.buffers(), before, strict=True):
            buffer.copy_(old)
    return {"loss": value.new_tensor(mean_over_ranks({"loss": value.item()})["loss"]), "gradient": gradient}


def trial_clips(n: int, config: TrainerConfig) -> int:
    """Half of the clips that go through the model at once, of n."""
    return -(-n // (2 * config.accumulate))


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
