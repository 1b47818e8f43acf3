"""Ranks for tests: processes that are connected as torchrun would connect them, but forked, which takes less time."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from worldmodel.training.distributed import process_group
from worldmodel.utils.errors import UserError

LIMIT = 60.0
"""Seconds after which ranks hang."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "worldmodel.training.vqvae_stage", "torch._dynamo"])


def act(work: Callable[..., None], args: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
    """Work as a script would do it, with what it says in a file."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with process_group():
            work(*args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def start_ranks(folder: Path, n: int, work: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Start n ranks; rank r writes what it says to <folder>/rank-r.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for r in range(n):
        place = address | {"RANK": str(r), "LOCAL_RANK": str(r)}
        processes.append(CONTEXT.Process(target=act, args=(work, args, place, folder / f"rank-{r}.txt")))
        processes[-1].start()
    return processes


def end_ranks(folder: Path, processes: list[BaseProcess]) -> list[tuple[int | None, str]]:
    """Wait for ranks; the exit status of each, None if it hangs, and what it said."""
    found = []
    for r, process in enumerate(processes):
        process.join(LIMIT)
        found.append((process.exitcode, (folder / f"rank-{r}.txt").read_text()))
        process.kill()
    return found


def on_ranks(folder: Path, n: int, work: Callable[..., None], *args: Any) -> list[tuple[int | None, str]]:
    """Run `work(*args)` on n ranks; see `end_ranks`."""
    return end_ranks(folder, start_ranks(folder, n, work, *args))
