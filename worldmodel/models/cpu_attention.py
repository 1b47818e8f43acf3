"""Self-attention of whole clips on a CPU under a mask, for training: queries are processed block by block.

PyTorch's fused kernel stores no attention weights and recomputes them in the backward pass. On a CPU this is slow in
bfloat16, and half of the work is for pairs that the mask hides. Here each block of queries attends to the keys up to
the last one that the block may see, with plain matrix products, and the attention weights are stored for the backward
pass. For 8 clips of 1,024 codes they take 64 MB per layer in bfloat16. Beyond `MAX_KEYS` keys the fused kernel is used.

Dropout of the attention weights is done here too. The official code has it; the paper does not mention it.

Dimensions: p problems (batch times heads), n positions, d channels of a head.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel.models.dropout import dropout_mask

MAX_KEYS, BLOCK_ROWS = 2048, 256
"""Most keys for which attention weights are stored, and queries of a block."""


class RowBlock(NamedTuple):
    """A block of queries, and the keys that it may attend to."""

    start: int
    stop: int
    keys: int
    """The first `keys` keys are used."""
    bias: Tensor
    """(queries, keys): 0 where a query attends to a key, else -inf."""


def row_blocks(mask: Tensor, dtype: torch.dtype) -> list[RowBlock]:
    """Divide a bool mask (n, n) into blocks."""
    found, n = [], len(mask)
    for start in range(0, n, BLOCK_ROWS):
        part = mask[start : start + BLOCK_ROWS]
        keys = int(part.any(0).nonzero().max()) + 1
        bias = torch.zeros(len(part), keys, dtype=dtype, device="cpu").masked_fill_(~part[:, :keys], float("-inf"))
        found.append(RowBlock(start, start + len(part), keys, bias))
    return found


@cache
def causal_row_blocks(n: int, dtype: torch.dtype) -> list[RowBlock]:
    """The blocks of a causal mask (n, n)."""
    return row_blocks(torch.ones(n, n, dtype=torch.bool, device="cpu").tril(), dtype)


class BlockAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v for (p, n, d), and its gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock], dropout: float) -> Tensor:
        q, shares, masks = q * q.shape[-1] ** -0.5, [], []
        out = torch.empty_like(q)
        for block in blocks:
            score = torch.bmm(q[:, block.start : block.stop], k[:, : block.keys].mT).add_(block.bias)
            share = score.softmax(-1)
            shares.append(share)
            if dropout:
                masks.append(dropout_mask(share.shape, dropout, share))
                share = share * masks[-1]
            out[:, block.start : block.stop] = torch.bmm(share, v[:, : block.keys])
        ctx.save_for_backward(q, k, v, *shares, *masks)
        ctx.rows = blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *rest = ctx.saved_tensors
        shares, masks = rest[: len(ctx.rows)], rest[len(ctx.rows) :]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for i, (block, share) in enumerate(zip(ctx.rows, shares, strict=True)):
            grad = grads[0][:, block.start : block.stop]
            into = torch.bmm(grad, v[:, : block.keys].mT)
            if masks:
                into.mul_(masks[i])
            dv[:, : block.keys] += torch.bmm((share * masks[i] if masks else share).mT, grad)
            score = torch._softmax_backward_data(into, share, -1, share.dtype)
            dq[:, block.start : block.stop] = torch.bmm(score, k[:, : block.keys])
            dk[:, : block.keys] += torch.bmm(score.mT, q[:, block.start : block.stop])
        return dq.mul_(q.shape[-1] ** -0.5), dk, dv, None, None


def block_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention of (b, a, n, d) under a bool mask (n, n); causal if the mask is None."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    blocks = causal_row_blocks(q.shape[-2], q.dtype) if mask is None else row_blocks(mask, q.dtype)
    with torch.autocast("cpu", enabled=False):
        return BlockAttention.apply(*(x.flatten(0, 1) for x in (q, k, v)), blocks, dropout).unflatten(0, q.shape[:2])
