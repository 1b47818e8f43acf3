"""Memory: how much there is, checked before large allocations, and how it is freed.

A process that takes too much is killed without any message.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from worldmodel.utils.errors import UserError

try:
    import resource
except ImportError:  # not on Windows, which has no such limits
    resource = None  # type: ignore[assignment]

CGROUP_LIMIT, GPU = Path("/sys/fs/cgroup/memory.max"), Path("/dev/nvidiactl")
"""Linux files: the memory limit of the container, and the device file of a GPU."""
OUT_OF_MEMORY_SIGNS = (
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "overflow",
    "dimension exceeded",
    "array is too big",
)
"""Parts of the messages with which torch and numpy refuse an allocation."""


def available_bytes(device: str = "cpu") -> int:
    """Bytes of memory of a device; for the CPU at most what a container or `ulimit` allows."""
    if device.startswith("cuda"):
        import torch  # here, because scripts without models should start without it

        return torch.cuda.mem_get_info(device)[1]
    if resource is None:
        return 2**63
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no Linux, no limit
        limits.append(int(CGROUP_LIMIT.read_text()))
    soft = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min([*limits, *(limit for limit in soft if limit != resource.RLIM_INFINITY)])


def check_memory(wanted: int, what: str, device: str = "cpu") -> None:
    """Check that a device has enough memory.

    Args:
        wanted: Bytes that are needed.
        what: What needs them, for the message.
        device: "cpu" or "cuda".

    Raises:
        UserError: If the device has less.
    """
    if wanted > (have := available_bytes(device)):
        raise UserError(
            f"{what} would take {wanted / 1e9:,.1f} GB, but {device} has {have / 1e9:,.1f} GB; ask for fewer"
        )


def limit_memory() -> None:
    """Make this process and its children raise an error when they allocate more memory than is available.

    It does nothing on machines with a GPU, whose driver reserves far more than it uses.
    """
    if resource is not None and not GPU.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (available_bytes(), hard))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that there was not enough memory."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory.

    By default it returns large blocks to the system, and each page faults again at the next step. This costs up to 40%
    of the training time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never trim the heap
