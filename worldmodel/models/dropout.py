"""Dropout with fast random masks on a CPU.

On a CPU, PyTorch draws one double for each number, on one core. This takes a quarter of a training step of the official
prior, which also has dropout after its softmax. Here one draw of 64 bits makes the masks of four numbers. The
probability of keeping a number is rounded to a multiple of 1/65536 and the scale uses the rounded value, so the result
is unbiased. On other devices PyTorch's dropout is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


def dropout_mask(shape: tuple[int, ...] | torch.Size, p: float, like: Tensor) -> Tensor:
    """A mask on the CPU, of the type of `like`: 0 with probability p, else 1 / (1 - p)."""
    size = torch.Size(shape).numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    dropped = round(p * LEVELS)
    mask = bits.view(torch.int16)[:size].view(shape) >= dropped - LEVELS // 2
    return mask.to(like.dtype).mul_(LEVELS / max(LEVELS - dropped, 1))


class Dropout(nn.Dropout):
    """`nn.Dropout` that uses `dropout_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * dropout_mask(x.shape, self.p, x)
