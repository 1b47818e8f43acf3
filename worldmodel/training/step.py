"""A training step: the batch in one or more parts, the gradient, and Adam.

Everything random in step s comes from generators seeded with (seed, s) and, for the parts of a batch after the first,
the number of the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.training.distributed import Loss, gradients_apart, mean_over_ranks
from worldmodel.training.sharding import whole
from worldmodel.training.trainer_config import TrainerConfig, learning_rate_at
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, resolve_precision
from worldmodel.utils.ranks import Pass, forward_pass, rank

Batch = dict[str, Tensor]
Sample = Callable[[np.random.Generator, int], dict[str, np.ndarray]]
"""Draws a rank's share of a batch, from the random generator of a step and the number of the step."""
SEPARABLE: WeakSet[nn.Module] = WeakSet()
"""Models that need nothing from the whole batch, as a first pass has shown. Their parts need no pass before them."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast for a precision on a device; disabled for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(device, precision) == "bfloat16")


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
            "same command again, without --restart, to resume from the last checkpoint; if it happens again, use "
            "--restart with a lower learning rate"
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
