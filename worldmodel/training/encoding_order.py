"""The order in which train/tokens.py encodes episodes, so that batches stay full and every core has work.

Episodes that are encoded side by side should be of similar length: when one ends, its lane stays empty until the
longest one ends. So a window of episodes is sorted by length, and cut into groups. On a CPU, groups are encoded by
several threads, which share the cores. The small operations of a step use one core nearly as well as several.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

from worldmodel.data.store import Store
from worldmodel.training.encoding import Rows

WINDOW_BYTES = 1 << 28
"""About how many bytes of frames are encoded before any of their codes is written. If the process is killed, this much
work is lost."""
MAX_THREADS = 8
"""Most threads that encode. It is assumed that Python, which starts their operations, cannot keep more of them busy."""
Episodes = Sequence[tuple[int, Rows]]
"""Episodes by number."""


def windows(store: Store, first: int, stop: int, lanes: int) -> Iterator[range]:
    """Consecutive episodes from `first` to `stop`: as many as `WINDOW_BYTES` holds, but at least one group."""
    shape, kind = store.array_layout("frames")
    n, size = first, math.prod(shape[1:]) * kind.itemsize
    while first < stop:
        held = 0
        while n < stop and (n - first < lanes or held + size * store.episode_length(n) <= WINDOW_BYTES):
            held += size * store.episode_length(n)
            n += 1
        yield range(first, n)
        first = n


def encode_window(
    encode: Callable[[Episodes, Callable[[], None]], list[Rows]], store: Store, window: range, lanes: int, n: int
) -> list[Rows]:
    """Encode the episodes of a window.

    Args:
        encode: Encodes a group of episodes. It often calls its second argument, which raises when it should end.
        store: Where the episodes are.
        window: Their numbers.
        lanes: Episodes of a group.
        n: Largest number of threads.

    Returns:
        The rows of codes of each, in the order of the window.
    """
    longest_first = sorted(window, key=lambda i: -store.episode_length(i))
    groups = [longest_first[at : at + lanes] for at in range(0, len(window), lanes)]
    episodes = ([(i, store.read_episode(i)) for i in group] for group in groups)
    ended, n = threading.Event(), min(n, len(groups))

    def check() -> None:
        if ended.is_set():
            raise InterruptedError

    with shared_cores(n), ThreadPoolExecutor(n) as pool:
        try:
            futures = [pool.submit(encode, group, check) for group in episodes]
            done = wait(futures, return_when=FIRST_EXCEPTION).done
            encoded = [future.result() for future in sorted(done, key=futures.index)]
        finally:  # after Ctrl-C, or an error, threads end at the next chunk of frames
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
    rows = {i: row for group, found in zip(groups, encoded, strict=True) for i, row in zip(group, found, strict=True)}
    return [rows[i] for i in window]


def n_threads(device: torch.device) -> int:
    """Number of threads that encode on a device."""
    return 1 if device.type == "cuda" else min(MAX_THREADS, torch.get_num_threads())


@contextmanager
def shared_cores(n: int) -> Iterator[None]:
    """Context in which n threads share PyTorch's threads among them."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // n))
    try:
        yield
    finally:
        torch.set_num_threads(before)
