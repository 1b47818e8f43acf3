"""3D convolution under zeros, without the work that zeros are, and right in bfloat16.

Where a clip is short, some taps of a kernel see nothing but the zeros before and after it. They are left out: of a
kernel of 3 over a single frame only the middle tap is used, a third of the work. It is also a matter of being right.
In bfloat16, PyTorch 2.13 (oneDNN 3.12)

* makes NaN of a single frame of 3 channels under 3x3x3 taps, on processors with AMX; 1x3x3 taps are right;
* leaves stale memory in a weight's gradient where a kernel is longer than its clip and zeros make up for it, on all
  processors with AVX-512, unless these zeros are part of the clip.

Clips are (b, c, t, h, w).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Zeros before and after time, height and width."""
NO_PADDING: Pads = ((0, 0), (0, 0), (0, 0))


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], pads: Pads) -> Tensor:
    """`F.conv3d` with other zeros before than after."""
    (before, after), frames, taps = pads[0], x.shape[2], weight.shape[2]
    last = (before + frames + after - taps) // stride[0] * stride[0] - before  # where the last output's taps begin
    low, high = max(0, -last), min(taps, frames + before)
    low = min(low, high - 1)  # the last outputs may see nothing but zeros
    if high - low < taps:
        weight = weight[:, :, low:high]
        before, after = before - low, max(0, last + high - frames)
    sides = ((before, after), *pads[1:])
    own = [a if a == b else 0 for a, b in sides]  # zeros that the convolution adds by itself
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
        """With `n_past` more zeros before the first frame."""
        (before, after), height, width = self.pads
        return conv3d(x, self.weight, self.bias, self.stride, ((before + n_past, after), height, width))
