"""Where the time of a call goes: its operations in groups, by PyTorch's profiler.

Attention that is computed by plain products, as our own on a CPU, counts as products.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

GROUPS = {
    "convolutions": ("convolution",),
    "the loss": ("log_softmax", "nll_loss"),
    "matrix products": ("mm", "::linear"),
    "attention": ("attention", "softmax"),
    "normalization": ("layer_norm", "group_norm", "batch_norm"),
    "the optimizer": ("adam",),
    "copies and casts": ("copy_", "::cat", "fill_", "zero_", "shuffle", "contiguous"),
}
"""Names of groups, and parts of the names of their operations. An operation belongs to the first group that fits."""
REST = "everything else"


def time_shares(call: Callable[[], object], device: str, steps: int = 3) -> dict[str, float]:
    """Shares of the time of a call by group, the largest first.

    Args:
        call: What to profile. It is called once before, to warm up.
        device: "cpu" or "cuda", whose time counts.
        steps: Number of calls.

    Returns:
        Shares that sum to 1. On a GPU, they are shares of the time of its kernels, without gaps between them.
    """
    on_gpu = device.startswith("cuda")
    call()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as found:
        for _ in range(steps):
            call()
    times: dict[str, float] = {}
    for event in found.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time is also that of the operation that started it
        seconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[group_of(event.key)] = times.get(group_of(event.key), 0.0) + seconds
    total = sum(times.values())
    return {name: t / total for name, t in sorted(times.items(), key=lambda item: -item[1]) if t}


def group_of(operation: str) -> str:
    """The group of an operation, such as aten::convolution_backward."""
    name = operation.lower()
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), REST)
