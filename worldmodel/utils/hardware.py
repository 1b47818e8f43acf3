"""The machine's speed, its precision, and the operations that a computation takes.

The peak of a machine is the measured rate of its 2048 x 2048 matrix product in a precision. It is a reference and not a
bound: on some processors a 3D convolution in float32 is faster than the product.

Operations are counted while they run; a multiplication and an addition are two. Counted are matrix products,
convolutions and attention, forward and backward. Not counted are element-wise operations, norms, softmax, look-ups,
reductions, and the optimizer. PyTorch's own counter ignores the attention kernel of CPUs, and
for the CUDA kernels it counts the scores that the backward pass recomputes. Here attention is two products forward and
four backward, for every kernel and in full, even if a mask hides half of it. There are two exceptions, where what the
mask hides is not counted: block-by-block attention on CPUs (worldmodel/models/cpu_attention.py), and FlexAttention on
CUDA, which adds the blocks that its mask keeps with `count_hidden`.
"""

from __future__ import annotations

import sys
import time
import timeit
import weakref
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import short_repr

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 if the processor is faster with it and `verified_precision` accepts it, else float32."""
TOLERANCE = {"loss": 0.1, "gradient": 1.0, "nats per code": 0.1, "picture": 0.1}
"""Largest relative difference of bfloat16 from float32 that is accepted. On correct hardware losses differ by at most
0.012 (all presets and pretrained models), and the results of a dream by 0.003. Gradients differ by up to 0.06 at the
start of training and 0.32 at its end, because a gradient then mostly cancels and its rounding errors do not."""
KERNELS = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")


def check_device(name: str | torch.device) -> None:
    """Check a device.

    Raises:
        UserError: If it is unknown or not available.
    """
    try:
        device = torch.device(name if isinstance(name, str | torch.device) else "")
    except RuntimeError:
        raise UserError(f"{short_repr(name)} is not a device; choose cpu or cuda") from None
    cuda = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    if not (cuda or device.type == "cpu"):
        raise UserError(f"the device {name} is not available on this machine; choose the device cpu")


def resolve_precision(device: torch.device, precision: Precision) -> Precision:
    """Resolve "auto": bfloat16 on CUDA and on CPUs that are faster at it, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" or (supports_bfloat16() and bfloat16_is_faster()) else "float32"


def supports_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; oneDNN also accepts plain AVX-512, which only emulates it."""
    emulated = torch.cpu._is_avx512_supported() and not torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulated


@cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32; measured once per process.

    Not every processor that has the instructions is faster: an Intel Xeon whose AMX units are hidden by the virtual
    machine reaches half of its float32 rate. Other processors reach two to five times their float32 rate.
    """
    return seconds_per_product("bfloat16") < seconds_per_product("float32")


def seconds_per_product(precision: str) -> float:
    """Seconds of the fastest of ten 512 x 512 matrix products on this CPU; other work rarely slows down all of them."""
    x = torch.ones(512, 512, dtype=getattr(torch, precision))
    return min(timeit.repeat(lambda: torch.mm(x, x), number=1, repeat=10))


def verified_precision(
    part: str, device: torch.device, precision: Precision, figures: Callable[[Precision], dict[str, Tensor]]
) -> Precision:
    """Resolve "auto" like `resolve_precision`, but test bfloat16 against float32 first.

    On some processors a few bfloat16 operations return NaN or uninitialized memory. If bfloat16 differs by more than
    `TOLERANCE`, a message on stderr says so and the result is float32. A value that is not finite in float32 does not
    count against bfloat16.

    Args:
        part: What is run, for the message.
        device: Where it is run.
        precision: The precision that was asked for.
        figures: Computes results in a precision from the same input, by the names in `TOLERANCE`.
    """
    best = resolve_precision(device, precision)
    if precision != "auto" or best == "float32":
        return best
    exact, rounded = figures("float32"), figures("bfloat16")
    for name, value in exact.items():
        size, other, off = (torch.linalg.vector_norm(x) for x in (value, rounded[name], rounded[name] - value))
        if size.isfinite() and not (off < TOLERANCE[name] * size or off == size == 0):
            text = f"{name} is {other:.4g} in bfloat16 and {size:.4g} in float32, more than {TOLERANCE[name]:.0%} apart"
            print(f"{part}: {text}; float32 is used instead", file=sys.stderr)
            return "float32"
    return best


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size) -> int:
    """Operations of softmax(q k^T) v for shapes (b, a, n, d), (b, a, m, d), (b, a, m, e)."""
    *many, n, d = query
    return 2 * prod(many) * n * key[-2] * (d + value[-1])


def attention_forward_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return attention_flops(query, key, value)


def attention_backward_flops(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return 2 * attention_flops(query, key, value)


class FlopCounter(FlopCounterMode):
    """A counter that takes operations of kernels which it cannot see, by `count_hidden`."""

    active: ClassVar[list[FlopCounter]] = []
    hidden = 0

    def __enter__(self) -> FlopCounter:
        self.active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        self.active.remove(self)
        return super().__exit__(*error)

    def get_total_flops(self) -> int:
        return super().get_total_flops() + self.hidden


def count_hidden(flops: Callable[[], float]) -> None:
    """Add operations that counters cannot see to all that are active now; they are computed only if there are any."""
    for counter in FlopCounter.active:
        counter.hidden += round(flops())


def flop_counter() -> FlopCounter:
    """A counter of operations: `with flop_counter() as count: work()`, then `count.get_total_flops()`.

    It does not change results, but costs a tenth of a millisecond for each operation, so count a single step.
    """
    mapping: dict[Any, Callable[..., int]] = {}
    for kernel in KERNELS:
        mapping[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")] = attention_forward_flops
        mapping[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")] = attention_backward_flops
    return FlopCounter(display=False, custom_mapping=mapping)


def calls_per_second(work: Callable[[], object], seconds: float, device: str) -> float:
    """Calls of `work` per second: the median of three measurements after a warm-up.

    Args:
        work: What to measure.
        seconds: Time of the three measurements together.
        device: "cpu" or "cuda", which is synchronized.
    """

    def once() -> float:
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 3:
            work()
            calls += 1
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return calls / (time.perf_counter() - start)

    work()
    return float(np.median([once() for _ in range(3)]))


def matmul_flops(device: str, precision: str, seconds: float = 1.0) -> float:
    """FLOP/s of a 2048 x 2048 matrix product in "float32" or "bfloat16"."""
    generator = torch.Generator(device).manual_seed(0)  # the global one is left alone
    a, b = torch.randn(2, 2048, 2048, device=device, generator=generator).to(getattr(torch, precision))
    return 2 * 2048**3 * calls_per_second(lambda: torch.mm(a, b), seconds, device)


def copy_bandwidth(device: str, seconds: float = 1.0) -> float:
    """Bytes/s of a copy of 256 MB; each byte counts twice, as read and written."""
    source = torch.empty(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes * calls_per_second(lambda: target.copy_(source), seconds, device)


def machine_rates(device: str, precision: str, seconds: float = 1.0) -> dict[str, float]:
    """`matmul_flops` and `copy_bandwidth` of a device, by the names "matmul" and "copy"."""
    return {"matmul": matmul_flops(device, precision, seconds), "copy": copy_bandwidth(device, seconds)}


@cache
def peak_flops(device: str, precision: str) -> float:
    """`matmul_flops`, measured briefly and once per process; too low if the machine is busy."""
    return matmul_flops(device, precision, 0.3)


class PeakMemory(TorchDispatchMode):
    """Measures the most bytes that new tensors hold at once: `with PeakMemory() as peak: work()`, then `peak.most`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in known:
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)
