"""How much memory there is: asked before it is taken, since a process that takes more is killed without a word."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from worldmodel.utils.errors import UserError

try:
    import resource
except ImportError:  # not on Windows, which has no such limits
    resource = None  # type: ignore[assignment]

CGROUP_LIMIT, GPU = Path("/sys/fs/cgroup/memory.max"), Path("/dev/nvidiactl")
"""Where Linux says how much a container may take, and that there is a GPU."""
OUT_OF_MEMORY_SIGNS = (
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "overflow",
    "dimension exceeded",
    "array is too big",
)
"""In what torch and numpy say of sizes that they cannot serve."""


def available_bytes(device: str = "cpu") -> int:
    """Bytes of memory of a device: of the machine, or what a container or `ulimit` leaves of it."""
    if device.startswith("cuda"):
        import torch  # not for scripts that need none

        return torch.cuda.mem_get_info(device)[1]
    if resource is None:
        return 2**63
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no Linux, no limit
        limits.append(int(CGROUP_LIMIT.read_text()))
    soft = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min([*limits, *(limit for limit in soft if limit != resource.RLIM_INFINITY)])


def check_memory(wanted: int, what: str, device: str = "cpu") -> None:
    """`UserError` if something takes more bytes than there are."""
    if wanted > (have := available_bytes(device)):
        raise UserError(f"{what} would take {wanted / 1e9:,.1f} GB, but there are {have / 1e9:,.1f}; ask for fewer")


def limit_memory() -> None:
    """From here on, this process and those that it starts get an error if one takes more memory than there is.

    Not where there is a GPU: its driver claims far more than it uses.
    """
    if resource is not None and not GPU.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (available_bytes(), hard))


def is_out_of_memory(error: Exception) -> bool:
    """Is it that there was not the memory?"""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)
