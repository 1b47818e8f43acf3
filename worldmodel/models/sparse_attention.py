"""Sparse attention over space-time, one pattern for all layers (section 4.1; Child et al., 2019).

The paper says no more than "local and strided". The official code has DeepSpeed's blocks of 32: four local ones, and
strides along all axes but the last. Here the same two ideas are said code by code, so that the pattern depends on no
kernel's block size. A position sees, of what it may see at all (its order and window decide that),

    local    the `local_window` positions before it
    strided  its own place in the other frames, and its own column in its own frame

On a CPU the pattern is a mask of bits for the fused dense kernel. On CUDA the same rule makes a block mask for
FlexAttention, which skips every 128 x 128 block that is empty and stores no L x L matrix.

Dimensions: positions are numbered frame after frame in raster order over (h, w, g); n = h*w*g of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from worldmodel.models.decoding_order import DecodingOrder


def may_attend(pass_index: Tensor, row: int, window: int, local_window: int, q: Tensor, k: Tensor) -> Tensor:
    """Bool, as q and k broadcast: may position q attend to position k? `local_window` 0 is dense.

    `pass_index` (n,) is the pass of each position of a frame, where q and k are: the kernel that is compiled from this
    cannot fetch it. `row` is the length of a frame's row.
    """
    n = len(pass_index)
    ago, i, j = q // n - k // n, q % n, k % n
    causal = ((ago > 0) & (ago < window)) | ((ago == 0) & (pass_index[i] >= pass_index[j]))
    if not local_window:
        return causal
    strided = (i == j) | ((ago == 0) & (i % row == j % row))
    return causal & (((q - k).abs() < local_window) | strided)


def clip_mask(order: DecodingOrder, frames: int, window: int, local_window: int = 0) -> Tensor:
    """(frames*n, frames*n) bool: `may_attend` of all positions of a clip, worked out one frame at a time."""
    every, row = torch.arange(frames * len(order), device="cpu"), order.w * order.g
    return torch.cat(
        [
            may_attend(order.pass_index, row, window, local_window, rows[:, None], every)
            for rows in every.split(len(order))
        ]
    )


def block_mask(order: DecodingOrder, frames: int, window: int, local_window: int, device: torch.device) -> BlockMask:
    """`may_attend` of all positions of a clip as FlexAttention wants it."""
    length, pass_index, row = frames * len(order), order.pass_index.to(device), order.w * order.g
    rule = lambda b, head, q, k: may_attend(pass_index, row, window, local_window, q, k)  # noqa: E731
    return create_block_mask(rule, None, None, length, length, device=str(device))
