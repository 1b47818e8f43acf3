"""A training step whose batch is split: over the ranks of torchrun, and on each rank into parts, one after another.

Most of a step is a mean over clips, and the mean of equal parts is the mean of the whole. The rest has to be computed
from the whole batch: sums and means that something is divided by, and the codebook, which follows all features. Models
compute these with this module, and get the same result on every rank and in every part:

* Ranks sum their tensors (`sum_over_ranks`), and take over the first rank's random choices (`from_first_rank`).
* Before the parts there is a pass over the whole batch without gradients. It records each result (`decide_once`), and
  every part reuses it.

All of this happens only inside a training step. Elsewhere each rank works alone, so the first one can evaluate alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """A forward pass of a training step."""

    notes: list[Tensor] | None = None
    """Where to record the results of the whole batch, if parts follow."""
    noted: Iterator[Tensor] | None = None
    """The recorded results, if this is the pass of a part."""


_pass: Pass | None = None


def rank() -> int:
    """The number of this rank."""
    return dist.get_rank() if n_ranks() > 1 else 0


def n_ranks() -> int:
    """The number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def wait_for_ranks() -> None:
    """Wait until every rank is here."""
    if n_ranks() > 1:
        dist.barrier()


def of_all_ranks(value: Any) -> list[Any]:
    """The values of all ranks, in order."""
    if n_ranks() == 1:
        return [value]
    found: list[Any] = [None] * n_ranks()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def forward_pass(this: Pass) -> Iterator[None]:
    """Context of a forward pass of a training step, which all ranks run at once."""
    global _pass
    _pass = this
    try:
        yield
    finally:
        _pass = None


def ranks_of_step() -> int:
    """The number of ranks that the batch is split over: 1 outside of a training step."""
    return 1 if _pass is None else n_ranks()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor over the ranks of a step; `x` is overwritten."""
    if ranks_of_step() > 1:
        dist.all_reduce(x)
    return x


def from_first_rank(x: Tensor) -> Tensor:
    """The first rank's tensor, in a step; `x` is overwritten."""
    if ranks_of_step() > 1:
        dist.broadcast(x, 0)
    return x


def select_over_ranks(x: Tensor, places: Tensor) -> Tensor:
    """`x[:, places]` of the tensors (g, n, d) of all ranks of a step, laid side by side along n."""
    if ranks_of_step() == 1:
        return x[:, places]
    n = x.shape[1]
    mine = (places // n == rank())[:, None]
    return sum_over_ranks(torch.where(mine, x[:, places % n], torch.zeros_like(x[:, :1])))


def decide_once(target: Tensor, decide: Callable[[], object]) -> None:
    """Let the whole batch of a step change a tensor.

    Args:
        target: The tensor.
        decide: Changes it in place, from the whole batch. In the pass of a part it is not called: `target` becomes what
            it was after the call in the pass over the whole batch.
    """
    if _pass is not None and _pass.noted is not None:
        target.copy_(next(_pass.noted))
        return
    decide()
    if _pass is not None and _pass.notes is not None:
        _pass.notes.append(target.clone())


def batch_sum(x: Tensor) -> Tensor:
    """The sum of a statistic over the whole batch of a step; no gradient passes through it."""
    total = x.detach().clone()
    decide_once(total, lambda: sum_over_ranks(total))
    return total


def batch_mean(x: Tensor) -> Tensor:
    """The mean of a statistic over the equal shares of the ranks of a step; no gradient passes through it."""
    mean = x.detach().clone()
    decide_once(mean, lambda: sum_over_ranks(mean).div_(ranks_of_step()))
    return mean
