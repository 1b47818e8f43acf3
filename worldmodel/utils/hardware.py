"""What a machine can do, whether it does it right, and what a piece of work asks of it.

The peak of a machine is taken as the rate of its own matrix product of 2048 in a precision, measured, not quoted.
It is a yardstick and not a bound: on some processors a 3D convolution in float32 is faster than the product.

Work is counted while it is done, a multiplication and an addition as two operations: matrix products, convolutions and
attention, forward and backward. Not counted are element-wise operations, norms, softmax, look-ups, reductions,
the optimiser, and FlexAttention on CUDA. PyTorch's counter knows nothing of the attention kernel of CPUs, and counts
for those of CUDA the scores which their backward pass works out a second time. Here attention is two products forward
and four backward, whichever kernel does it, and whole, also where a mask hides half of it; but where a clip is attended
to block by block (worldmodel/models/cpu_attention.py), those products are counted that are done.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import short_repr

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 where the processor multiplies it in hardware and it is `verified_precision`, float32 elsewhere."""
TOLERANCE = {"loss": 0.1, "gradient": 1.0, "nats a code": 0.1, "picture": 0.1}
"""How far bfloat16 may be from float32, in shares of what float32 gives. What is right was within 0.012 for losses, of
all presets and of the models that ship, and within 0.003 for a dream's figures. A gradient has mostly cancelled where
there is little left to learn, but its rounding errors have not: up to 0.06 at the beginning, and 0.32 at the end."""
KERNELS = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")


def check_device(name: str | torch.device) -> None:
    """`UserError` for a device that is unknown or not here."""
    try:
        device = torch.device(name if isinstance(name, str | torch.device) else "")
    except RuntimeError:
        raise UserError(f"{short_repr(name)} is no device; choose cpu or cuda") from None
    cuda = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    if not (cuda or device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())):
        raise UserError(f"there is no {name} on this machine; choose the device cpu")


def resolve_precision(device: torch.device, precision: Precision) -> Precision:
    """What a precision comes to on a device. Processors without bfloat16 units emulate it, far slower."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" or supports_bfloat16() else "float32"


def supports_bfloat16() -> bool:
    """Does this processor multiply bfloat16? oneDNN takes AVX-512 for enough, which alone only emulates it."""
    emulated = torch.cpu._is_avx512_supported() and not torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulated


def verified_precision(
    part: str, device: torch.device, precision: Precision, figures: Callable[[Precision], dict[str, Tensor]]
) -> Precision:
    """What a precision comes to: where "auto" comes to bfloat16, that is tried first against float32.

    There are processors on which some operations in bfloat16 give NaN, or memory that was never written. `figures` are
    named as in `TOLERANCE`, from the same input in either precision. Where those of bfloat16 are not within it, one
    sentence says so, and it is float32. What is no number in float32 either is not to be blamed on bfloat16.
    """
    best = resolve_precision(device, precision)
    if precision != "auto" or best == "float32":
        return best
    exact, rounded = figures("float32"), figures("bfloat16")
    for name, value in exact.items():
        size, other, off = (torch.linalg.vector_norm(x) for x in (value, rounded[name], rounded[name] - value))
        if size.isfinite() and not (off < TOLERANCE[name] * size or off == size == 0):
            text = f"{name} is {other:.4g} in bfloat16 and {size:.4g} in float32, more than {TOLERANCE[name]:.0%} apart"
            print(f"{part}: {text}; it goes on in float32", file=sys.stderr)
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


def flop_counter() -> FlopCounterMode:
    """Counts while it is entered: `with counter() as count: work()`, then `count.get_total_flops()`.

    It changes nothing of what is computed, but costs a tenth of a millisecond an operation: one step counted is enough.
    """
    mapping: dict[Any, Callable[..., int]] = {}
    for kernel in KERNELS:
        mapping[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")] = attention_forward_flops
        mapping[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")] = attention_backward_flops
    return FlopCounterMode(display=False, custom_mapping=mapping)


def calls_per_second(work: Callable[[], object], seconds: float, device: str) -> float:
    """Calls a second, the median of three measurements after a warm-up."""

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
    """FLOP/s of a matrix product of 2048 in "float32" or "bfloat16"."""
    generator = torch.Generator(device).manual_seed(0)  # the global one is left alone
    a, b = torch.randn(2, 2048, 2048, device=device, generator=generator).to(getattr(torch, precision))
    return 2 * 2048**3 * calls_per_second(lambda: torch.mm(a, b), seconds, device)


def copy_bandwidth(device: str, seconds: float = 1.0) -> float:
    """Bytes/s of a copy of 256 MB, read and written."""
    source = torch.empty(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes * calls_per_second(lambda: target.copy_(source), seconds, device)


def machine_rates(device: str, precision: str, seconds: float = 1.0) -> dict[str, float]:
    """FLOP/s of a matrix product in a precision and bytes/s of a copy."""
    return {"matmul": matmul_flops(device, precision, seconds), "copy": copy_bandwidth(device, seconds)}


@cache
def peak_flops(device: str, precision: str) -> float:
    """`matmul_flops`, measured briefly and once in a process; beside other work it comes out too low."""
    return matmul_flops(device, precision, 0.3)


class PeakMemory(TorchDispatchMode):
    """The most bytes that work holds in tensors of its own: `with PeakMemory() as peak: work()`, then `peak.most`."""

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
