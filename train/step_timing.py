"""Times training steps and reductions on several ranks, for train/scaling.py."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.workloads import Task, training_step
from worldmodel.training.distributed import any_rank, process_group
from worldmodel.utils.errors import UserError
from worldmodel.utils.memory import keep_freed_memory
from worldmodel.utils.processes import ctrl_c_later, end_at_ctrl_c
from worldmodel.utils.ranks import n_ranks

KINDS = ("all_reduce", "broadcast", "all_gather", "reduce_scatter")


@dataclass(frozen=True)
class Timing:
    """What is timed on a number of ranks."""

    tasks: tuple[Task, ...]
    """Steps; the batch of a task is that of one rank."""
    reduced: tuple[int, ...]
    """Bytes of the all-reduces."""
    steps: int
    threads: int
    connected: bool = True
    """Whether the processes are ranks of one training, or train alone at the same time."""


@dataclass(frozen=True)
class Times:
    """Seconds of the fastest steps and all-reduces, and the traffic of each step."""

    steps: list[float]
    reduced: list[float]
    collectives: list[dict[str, int]]
    """Bytes of the collective operations in a step, by kind."""


class Operations(TorchDispatchMode):
    """Counts operations, and the bytes of collective ones by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.bytes = 0, Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.n += 1
        name = func._schema.name
        kind = next((kind for kind in KINDS if kind.replace("_", "") in name.replace("_", "")), "")
        if kind and "c10d" in name:
            sizes = [leaf.nbytes for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            whole = max if kind in ("all_gather", "reduce_scatter") else sum  # other kinds have only one tensor
            self.bytes[kind] += whole(sizes)
        return func(*args, **(kwargs or {}))


def on_ranks(n: int, timing: Timing) -> Times:
    """Run `measure` on n ranks, started as torchrun starts them; returns the result of the first one.

    Raises:
        UserError: If a rank has failed.
        KeyboardInterrupt: After Ctrl-C or SIGTERM.
    """
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=n, run_id=f"scaling-{n}", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, start_method="spawn",
    )  # fmt: skip
    try:
        with ctrl_c_later():
            return elastic_launch(config, measure_rank)(timing)[0]
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        raise UserError(
            f"rank {error.get_first_failure()[0]} has failed; its error is above. Fix that, or choose smaller models "
            "if memory ran out"
        ) from None


def measure_rank(timing: Timing) -> Times:
    """`measure` in a process that `on_ranks` has started."""
    end_at_ctrl_c()
    return measure(timing)


def measure(timing: Timing) -> Times:
    """Time everything on this rank, at the same time as on the others."""
    torch.set_num_threads(timing.threads)
    keep_freed_memory()
    with process_group() if timing.connected else nullcontext():
        found = [measure_step(task, timing.steps) for task in timing.tasks]
        seconds, collectives = (list(column) for column in zip(*found, strict=True))
        sizes = timing.reduced if n_ranks() > 1 else ()
        return Times(seconds, [measure_reduction(size, timing.steps) for size in sizes], collectives)


def measure_step(task: Task, steps: int) -> tuple[float, dict[str, int]]:
    """Seconds of the fastest step of a task, and its bytes of collective operations by kind."""
    train = training_step(task)

    def step() -> None:
        train()
        any_rank(False, False)  # as `fit` asks after each step

    step()
    step()  # DistributedDataParallel rearranges its buckets at the second step
    with Operations() as count:
        step()
    return fastest(step, steps), dict(count.bytes)


def measure_reduction(size: int, times: int) -> float:
    """Seconds of the fastest all-reduce of a number of bytes."""
    tensor = torch.zeros(size // 4)
    return fastest(lambda: dist.all_reduce(tensor), times)


def fastest(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls; every rank makes the same number of calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def best(rounds: Sequence[Times]) -> Times:
    """The fastest of several rounds."""
    steps, reduced = (
        [min(times) for times in zip(*columns, strict=True)]
        for columns in ([each.steps for each in rounds], [each.reduced for each in rounds])
    )
    return replace(rounds[0], steps=steps, reduced=reduced)
