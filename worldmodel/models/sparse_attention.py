"""Sparse attention over space-time, one pattern for all layers (section 4.1; Child et al., 2019).

The paper only says "local and strided". The official code uses DeepSpeed's blocks of 32: four local ones, and strides
along all axes but the last. Here both ideas are defined for single codes, so the pattern does not depend on the block
size of a kernel. Of the positions that decoding order and window allow, a position attends to

    local    the `local_window` positions before it
    strided  its own position in the other frames, and its own column in its own frame

On a CPU the pattern is a bool mask for the fused dense kernel. On CUDA the same rule makes a block mask for
FlexAttention, which skips every empty block of 128 x 128 and stores no L x L matrix.

Dimensions: positions are numbered frame after frame in raster order over (h, w, g); n = h*w*g of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from worldmodel.models.decoding_order import DecodingOrder


def may_attend(pass_index: Tensor, row: int, window: int, local_window: int, q: Tensor, k: Tensor) -> Tensor:
    """Whether position q may attend to position k, as a bool tensor of the broadcast shape of q and k.

    Args:
        pass_index: (n,) the pass of each position of a frame. It must be on the device of q and k, because the kernel
            that is compiled from this function cannot copy it.
        row: Positions in a row of a frame.
        window: Attention span in frames.
        local_window: Number of local positions; 0 for dense attention.
        q: Indices of queries.
        k: Indices of keys.
    """
    n = len(pass_index)
    ago, i, j = q // n - k // n, q % n, k % n
    causal = ((ago > 0) & (ago < window)) | ((ago == 0) & (pass_index[i] >= pass_index[j]))
    if not local_window:
        return causal
    strided = (i == j) | ((ago == 0) & (i % row == j % row))
    return causal & (((q - k).abs() < local_window) | strided)


def clip_mask(order: DecodingOrder, frames: int, window: int, local_window: int = 0) -> Tensor:
    """`may_attend` for all positions of a clip, (frames*n, frames*n) bool, computed frame by frame to save memory."""
    every, row = torch.arange(frames * len(order), device="cpu"), order.w * order.g
    return torch.cat(
        [
            may_attend(order.pass_index, row, window, local_window, rows[:, None], every)
            for rows in every.split(len(order))
        ]
    )


def block_mask(order: DecodingOrder, frames: int, window: int, local_window: int, device: torch.device) -> BlockMask:
    """`may_attend` for all positions of a clip, as a block mask of FlexAttention."""
    length, pass_index, row = frames * len(order), order.pass_index.to(device), order.w * order.g
    rule = lambda b, head, q, k: may_attend(pass_index, row, window, local_window, q, k)  # noqa: E731
    return create_block_mask(rule, None, None, length, length, device=str(device))
