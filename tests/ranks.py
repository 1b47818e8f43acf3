"""Ranks for tests: processes that are connected as torchrun would connect them, but forked, which takes less time."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worldmodel.training import distributed, trainer
from worldmodel.training.distributed import process_group
from worldmodel.utils.errors import UserError

LIMIT = 60.0
"""Seconds after which ranks hang."""
PATIENCE = "PATIENCE"
"""Environment variable with the seconds that a rank waits for others."""
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    __name__,
    "tests.campaign.careless",
    "tests.campaign.inputs",
    "tests.campaign.kills",
    "tests.campaign.ranks",
    "tests.collect.test_ranks",
    "tests.train.test_ranks_of_stages",
    "tests.train.test_scaling",
    "tests.worldmodel.training.test_ranks",
    "torch._dynamo",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "worldmodel.training.vqvae_stage",
]
"""What the one process imports that all others are forked from. A module sets it once: a second list replaces it."""
CONTEXT.set_forkserver_preload(PRELOADED)


def act(work: Callable[..., None], args: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
    """Work as a script would do it, with what it says in a file. `PATIENCE` is how long it waits for other ranks."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    trainer.peak_flops = lambda device, precision: 1e12  # measuring it takes a second
    if PATIENCE in environment:
        distributed.TIMEOUT = timedelta(seconds=float(environment[PATIENCE]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with process_group():
            work(*args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


def on_ranks(
    folder: Path, n: int, work: Callable[..., None], *args: Any, patience: float | None = None
) -> list[tuple[int | None, str]]:
    """Run `work(*args)` on n ranks, which wait for each other for `patience` seconds, or as long as usual.

    Returns:
        The exit status of each rank, None if it hangs, and what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # in the place of torchrun's
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    agent |= {} if patience is None else {PATIENCE: str(patience)}
    logs = [folder / f"rank-{r}.txt" for r in range(n)]
    places = [agent | {"WORLD_SIZE": str(n), "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(n)]
    processes = [CONTEXT.Process(target=act, args=(work, args, *where)) for where in zip(places, logs, strict=True)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    found = [(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]
    for process in processes:
        process.kill()
    return found


def only_sentence(found: list[tuple[int | None, str]], status: int = 2) -> str:
    """What ranks said that all ended with a status, one of them with a sentence."""
    assert [code for code, _ in found] == [status] * len(found), found
    said = [line for _, text in found for line in text.splitlines() if "%|" not in line]
    assert len(said) == 1, said
    return said[0]


def restarting(folder: Path, n: int, max_restarts: int, work: Callable[..., None], *args: Any) -> str:
    """Run `work(*args)` on n ranks under the agent of torchrun, which starts all of them again when one has failed.

    Returns:
        What the ranks said.

    Raises:
        ChildFailedError: If they fail more often than that.
        TimeoutError: If they hang.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.05,
        start_method="forkserver",
    )

    def hang(*_: Any) -> None:
        raise TimeoutError(f"no end within {LIMIT} s")

    usual = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    logging.disable()  # the agent tells at length what it sees
    try:
        elastic_launch(config, act)(work, args, {}, folder / "ranks.txt")
    finally:
        logging.disable(logging.NOTSET)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    return (folder / "ranks.txt").read_text()
