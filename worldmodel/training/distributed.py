"""Training on several ranks, which torchrun starts: `torchrun --nproc-per-node 2 train/vqvae.py ...`.

PyTorch does the work: DistributedDataParallel averages gradients, or FSDP2 spreads the model (training/sharding.py),
and gloo or NCCL carries them. Decided here:

* A config's batch size is that of all ranks together. Each rank trains on its share, so N ranks take the same step as
  one rank would. utils/ranks.py explains what models have to do for this.
* Only the first rank writes files and prints. All ranks read the same data and checkpoints, and compare them before the
  first step. Otherwise ranks could train different models without noticing, or wait for each other forever.
* An error on one rank ends all of them. The rank that fails first prints its error. The others notice that a rank is
  gone, and exit without a message.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import worldmodel
from worldmodel.training.sharding import is_spread, shard
from worldmodel.utils.compatibility import flatten
from worldmodel.utils.errors import UserError
from worldmodel.utils.ranks import n_ranks, of_all_ranks, rank

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, such as for an evaluation by the first one."""
REPORT_TIME = timedelta(seconds=5)
"""How long the first rank that fails has to print its error."""
Loss = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Turns a batch into scalars, one of them named "loss"."""


@contextmanager
def process_group() -> Iterator[None]:
    """Context of a script: connects the ranks, if torchrun has started several.

    Raises:
        UserError: If a rank is lost.
        SystemExit: If another rank has failed first.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = dist.PrefixStore(f"start-{_restarts()}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # from 1x1 convolutions
    with only_first_failure(), quiet_unless_first():
        yield
    dist.destroy_process_group()


def _restarts() -> str:
    """How often torchrun has restarted the ranks: its store still has the addresses of those that have ended.

    Each node counts its own restarts. With several nodes the counts may differ, so they are not used.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"


@contextmanager
def only_first_failure() -> Iterator[None]:
    """Context in which an error ends all ranks: it is raised on the rank that fails first, the others just exit."""
    try:
        yield
    except SystemExit:  # from the command line, on all ranks alike
        _let_first_rank_report()
        raise
    except (Exception, KeyboardInterrupt) as error:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # torchrun sends them when the first rank has ended
                signal.signal(number, signal.SIG_IGN)
        if not _fails_first():
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        if not _is_lost_rank(error):
            raise
        raise UserError(
            "a rank has ended or does not answer; look for its error above, and run the same command again, without "
            "--restart, to resume"
        ) from error


def _fails_first() -> bool:
    """Whether no other rank has failed before. If one has, wait until it has printed its error."""
    try:
        if dist.distributed_c10d._get_default_store().add("failures", 1) > 1:
            _wait_for_report()
            return False
        _report_at_exit()
        return True
    except dist.DistError:  # the rank that hosted the store has ended; a store of torchrun would still be there
        return False


def _let_first_rank_report() -> None:
    """Make the other ranks wait until the first one has printed its message."""
    with suppress(dist.DistError):
        (_wait_for_report if rank() else _report_at_exit)()


def _report_at_exit() -> None:
    """Tell the other ranks when this one exits, after it has printed its error."""
    atexit.register(dist.distributed_c10d._get_default_store().set, "reported", "")


def _wait_for_report() -> None:
    """Wait for the rank that prints an error, because torchrun ends all ranks when one has ended."""
    with suppress(dist.DistError):
        dist.distributed_c10d._get_default_store().wait(["reported"], REPORT_TIME)


def _is_lost_rank(error: BaseException) -> bool:
    """Whether an error of a collective operation means that another rank is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Context in which other ranks than the first print nothing."""
    with open(os.devnull, "w") as nowhere, ExitStack() as stack:
        if rank():
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Context of work that the first rank does before the others."""
    if rank():
        any_rank(False)
    yield
    if not rank():
        any_rank(False)


def on_first_rank(context: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
    """A context that only the first rank enters; on the others it gives None."""
    return nullcontext() if rank() else context()


def check_equal(**what: Any) -> None:
    """Check that all ranks have the same values.

    Raises:
        UserError: On all ranks, naming the first thing that differs.
    """
    found = of_all_ranks(flatten(what))
    first = found[0]
    for other, theirs in enumerate(found):
        for name in sorted(first.keys() | theirs.keys()):
            if theirs.get(name) != first.get(name):
                raise UserError(
                    f"rank {other} has {name} = {theirs.get(name)}, but rank 0 has {first.get(name)}; start all ranks "
                    "with the same command, code and data"
                )


def check_gpus(device: torch.device) -> None:
    """Check that each rank of this machine has a GPU, if they compute on GPUs.

    Raises:
        UserError: If there are too few.
    """
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise UserError(
            f"there are {here} ranks on a machine with {gpus} GPUs; start at most {gpus} with --nproc-per-node, or "
            "compute with --device cpu"
        )


def code_digest() -> str:
    """Digest of the library's source files."""
    total, folder = hashlib.sha256(), Path(worldmodel.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on any rank. All ranks wait for each other here."""
    if n_ranks() == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(counts)
    return (counts > 0).tolist()


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The means of figures that every rank has."""
    if n_ranks() == 1:
        return values
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, (total / n_ranks()).tolist(), strict=True))


def gather(tensor: Tensor) -> Tensor:
    """The shares of all ranks, one after another."""
    if n_ranks() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(n_ranks())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class StepLoss(nn.Module):
    """A model's training loss as a module, to be wrapped."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.loss(batch)


def wrap_loss(model: nn.Module, loss: Loss, compiled: bool, sharded: bool) -> Loss:
    """The loss, compiled if asked for, and on several ranks with averaged gradients; `sharded` spreads the model."""
    if compiled:
        loss = torch.compile(loss)
    if n_ranks() == 1:
        return loss
    step_loss = StepLoss(model, loss)
    if sharded:
        shard(step_loss)
        return step_loss
    return DistributedDataParallel(step_loss, forward_sync_buffers=False)


@contextmanager
def gradients_apart(loss: Any) -> Iterator[None]:
    """Context of a part of a batch that is not the last: its gradient is added up, but not yet averaged over ranks."""
    if is_spread(loss):
        loss.set_requires_gradient_sync(False)
        yield
        loss.set_requires_gradient_sync(True)
    else:
        with loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext():
            yield
