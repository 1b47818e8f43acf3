"""Dropout whose masks are drawn quickly on a CPU.

PyTorch draws there one double for each number, on one core: a quarter of a training step of the official prior, which
has dropout after its softmax too. Here one draw of 64 bits makes the masks of four numbers. A number is kept with a
probability that is a multiple of 1/65536, and the scale is that of this probability, so nothing is biased. Elsewhere
PyTorch's own dropout is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


def dropout_mask(shape: tuple[int, ...] | torch.Size, p: float, like: Tensor) -> Tensor:
    """A mask of 0 with probability p and else 1 / (1 - p), of the type and on the CPU of `like`."""
    size = torch.Size(shape).numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    dropped = round(p * LEVELS)
    mask = bits.view(torch.int16)[:size].view(shape) >= dropped - LEVELS // 2
    return mask.to(like.dtype).mul_(LEVELS / max(LEVELS - dropped, 1))


class Dropout(nn.Dropout):
    """`nn.Dropout` by the masks of `dropout_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * dropout_mask(x.shape, self.p, x)
