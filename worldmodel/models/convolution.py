"""3D convolution with zero padding that skips multiplications by zeros and is correct in bfloat16.

If a clip is short, some taps of a kernel only ever meet the padding before and after it. These taps are left out: of a
kernel of 3 over a single frame only the middle tap is used, which is a third of the work. Correctness needs it too. In
bfloat16, PyTorch 2.13 (oneDNN 3.12)

* returns NaN for a single frame of 3 channels with a 3x3x3 kernel on processors with AMX; 1x3x3 kernels are correct;
* leaves uninitialized memory in a weight's gradient if the kernel is longer than the clip without its padding, on all
  processors with AVX-512. With the zeros as part of the clip the gradient is correct.

Clips are (b, c, t, h, w).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Zeros before and after time, height and width."""
NO_PADDING: Pads = ((0, 0), (0, 0), (0, 0))


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], pads: Pads) -> Tensor:
    """`F.conv3d` with separate padding before and after each axis.

    Args:
        x: (b, c, t, h, w).
        weight: (out, c, t, h, w).
        bias: (out,).
        stride: Stride in time, height and width.
        pads: Zeros before and after each axis.
    """
    (before, after), frames, taps = pads[0], x.shape[2], weight.shape[2]
    last = (before + frames + after - taps) // stride[0] * stride[0] - before  # where the last output's taps begin
    low, high = max(0, -last), min(taps, frames + before)
    low = min(low, high - 1)  # keep one tap, even if the last outputs depend on padding only
    if high - low < taps:
        weight = weight[:, :, low:high]
        before, after = before - low, max(0, last + high - frames)
    sides = ((before, after), *pads[1:])
    own = [a if a == b else 0 for a, b in sides]  # symmetric padding is left to the convolution
    if frames < high - low:
        own[0] = 0
    added = [n - own[axis] for axis in (2, 1, 0) for n in sides[axis]]
    return F.conv3d(F.pad(x, added) if any(added) else x, weight, bias, stride, own)


class Conv3d(nn.Conv3d):
    """`conv3d` as a module."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1, 1),
        pads: Pads = NO_PADDING,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)  # type: ignore[arg-type]
        self.pads = pads

    def forward(self, x: Tensor, n_past: int = 0) -> Tensor:
        """Convolve x (b, c, t, h, w), with `n_past` more zero frames before the first one."""
        (before, after), height, width = self.pads
        return conv3d(x, self.weight, self.bias, self.stride, ((before + n_past, after), height, width))
