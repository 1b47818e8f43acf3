"""Self-attention over the codes of a video: over a whole clip under a mask, or one pass at a time from a cache.

In stream mode time is relative. Queries and keys are rotated by the index of their frame (rotary embeddings along time
only), so a score depends on the number of frames between them, and a cached key stays valid indefinitely. Space is
absolute: position embeddings are added to the input.

Dimensions: b batch (lane), t frames, n positions of a frame, a query heads, d channels of a head, w window in frames.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils._python_dispatch import _disable_current_modes

from worldmodel.models.cpu_attention import MAX_KEYS, block_attention
from worldmodel.utils.hardware import attention_flops, count_hidden

Mask = Tensor | BlockMask | Literal["causal"] | None
"""Attention mask: a bool tensor (True attends) or an additive one, a FlexAttention block mask, "causal", or None for
full attention."""


def rotary_embedding(times: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Rotary embedding: cosines and sines of each frame's angles, which advance by 1 to 1/100 radians per frame.

    The angles are computed in float64, so that frame 1,000,000 is as exact as frame 1.

    Args:
        times: Time indices of frames (t,).
        dim: Channels of a head.
        dtype: Type of the result.

    Returns:
        (2, t, dim), for `apply_rotary`.
    """
    frequencies = 100.0 ** -torch.linspace(0, 1, dim // 2, dtype=torch.float64, device=times.device)
    angles = times.double()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(dtype)


def apply_rotary(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate (..., t*n, d) by the angles of its frames; `rotary` (2, t*n or 1, d) is from `rotary_embedding`."""
    # (even, odd) -> (even cos - odd sin, odd cos + even sin): the sign is stored with the sines
    even, odd = x.chunk(2, dim=-1)
    return torch.addcmul(x * rotary[0], torch.cat([odd, even], dim=-1), rotary[1])


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention as one kernel; without `torch.compile` it would store all scores."""
    return torch.compile(flex_attention)


def flex_attention_cuda(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention on CUDA, hidden from operation counters, under which PyTorch does not compile.

    Its operations are added to their counts: those of the blocks that the mask keeps, and twice as many for gradients.
    """
    passes = 3 if torch.is_grad_enabled() and q.requires_grad else 1
    count_hidden(lambda: passes * attention_flops(q.shape, k.shape, v.shape) * (1 - mask.sparsity() / 100))
    with _disable_current_modes():
        return compiled_flex_attention()(q, k, v, block_mask=mask)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention.

    On a CPU the fused kernel is slow for many small problems, such as a step of many dreams or attention along the axes
    of a video, and for single queries, as in sampling code by code. Two plain matrix products are up to five times
    faster. The fused kernel is also slow for masked clips (worldmodel/models/cpu_attention.py).

    Args:
        q: Queries (b, ..., queries, d).
        k: Keys (b, ..., keys, d).
        v: Values (b, ..., keys, d).
        mask: What to attend to.
        dropout: Dropout probability of attention weights.

    Returns:
        (b, ..., queries, d).
    """
    if isinstance(mask, BlockMask):
        if q.device.type == "cuda":
            return flex_attention_cuda(q, k, v, mask)
        return flex_attention(q, k, v, block_mask=mask)  # type: ignore[return-value]
    dense_mask, length = mask if isinstance(mask, Tensor) else None, k.shape[-2]
    if q.device.type == "cpu" and _is_masked_clip(q, k, mask) and length <= MAX_KEYS:
        return block_attention(q, k, v, dense_mask, dropout)
    if q.device.type != "cpu" or dropout or isinstance(mask, str) or not _is_small(q, length):
        return F.scaled_dot_product_attention(q, k, v, dense_mask, dropout, is_causal=isinstance(mask, str))
    scores = _scores(q * q.shape[-1] ** -0.5, k)
    if dense_mask is not None:
        scores = (
            scores.masked_fill_(~dense_mask, float("-inf"))
            if dense_mask.dtype == torch.bool
            else scores.add_(dense_mask)
        )
    return torch.matmul(scores.softmax(-1), v)


def _is_small(q: Tensor, length: int) -> bool:
    """Whether plain products are faster: many small problems, or single queries. The bounds are measured."""
    rows, many = q.shape[-2], len(q) >= 16
    if q.requires_grad:
        return length <= 256 and (many or rows == 1)
    if q.dtype == torch.bfloat16:
        return rows == 1 or (rows <= 32 and q[..., 0].numel() * length >= 2**16)
    return rows == 1 or (rows <= 16 and many)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Products of queries and keys. In bfloat16 the keys of a cache, which are not contiguous, would be copied if they
    were the second factor."""
    if q.dtype == torch.bfloat16 and not k.is_contiguous():
        return torch.matmul(k, q.transpose(-1, -2)).transpose(-1, -2)
    return torch.matmul(q, k.transpose(-1, -2))


def _is_masked_clip(q: Tensor, k: Tensor, mask: Mask) -> bool:
    """Whether this is attention of whole clips (b, a, n, d) under a mask (n, n) in training."""
    whole = isinstance(mask, Tensor) and mask.shape == (q.shape[-2], k.shape[-2]) and q.shape[-2] == k.shape[-2]
    return q.requires_grad and (isinstance(mask, str) or whole)


class Attention(nn.Module):
    """Multi-head self-attention over (b, t, n, width)."""

    def __init__(self, d_model: int, n_heads: int, n_layers: int, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.qkv = nn.Linear(d_model, d_model // n_heads * (n_heads + 2 * n_kv_heads), bias=False)
        self.out = nn.Linear(d_model, d_model)
        nn.init.normal_(self.qkv.weight, std=d_model**-0.5)
        nn.init.normal_(self.out.weight, std=(d_model * n_layers) ** -0.5)
        nn.init.zeros_(self.out.bias)

    def project_qkv(self, x: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor]:
        """Project features to queries, keys and values, and rotate queries and keys by their time.

        Args:
            x: (b, t, n, width).
            rotary: From `rotary_embedding`; None for absolute time.

        Returns:
            Queries (b, a, t*n, d); keys and values (b, key heads, 2, t*n, d).
        """
        b, t, n, width = x.shape
        heads = self.qkv(x).view(b, t * n, -1, width // self.n_heads)
        q = heads[:, :, : self.n_heads].transpose(1, 2)
        kv = heads[:, :, self.n_heads :].unflatten(2, (2, self.n_kv_heads)).permute(0, 3, 2, 1, 4)
        if rotary is None:
            return q, kv
        return apply_rotary(q, rotary), torch.stack([apply_rotary(kv[:, :, 0], rotary), kv[:, :, 1]], 2)

    def attend(self, q: Tensor, kv: Tensor, mask: Mask, like: Tensor, dropout: float = 0.0) -> Tensor:
        """Attention and output projection.

        With fewer key heads than query heads (grouped-query attention), the queries of a group are stacked as rows of a
        single problem where the mask allows it, so that keys and values are not copied for each query head.

        Args:
            q: Queries (b, a, queries, d).
            kv: Keys and values (b, key heads, 2, keys, d).
            mask: What to attend to.
            like: Tensor of the output's shape (b, t, n, width).
            dropout: Dropout probability of attention weights.
        """
        group_size, (k, v) = self.n_heads // self.n_kv_heads, kv.unbind(2)
        rows = mask.shape[-2] if isinstance(mask, Tensor) else 0
        if group_size > 1 and (mask is None or rows == 1 or (isinstance(mask, Tensor) and mask.dim() == 4)):
            # the queries of a group become rows of one problem, so keys and values are read once, not for each head
            b, _, m, d = q.shape
            if isinstance(mask, Tensor) and rows > 1:
                mask = mask.repeat(1, 1, group_size, 1)
            y = attend(q.reshape(b, self.n_kv_heads, group_size * m, d).to(k.dtype), k, v, mask).reshape(
                b, self.n_heads, m, d
            )
        elif group_size > 1:
            y = attend(q, k.repeat_interleave(group_size, 1), v.repeat_interleave(group_size, 1), mask, dropout)
        else:
            y = attend(q.to(k.dtype), k, v, mask, dropout)
        return self.out(y.to(q.dtype).transpose(1, 2).reshape(like.shape))


class CrossAttention(nn.Module):
    """Multi-head attention of (b, t, n, width) to the features (b, m, cond_dim) of conditioning frames."""

    def __init__(self, d_model: int, n_heads: int, n_layers: int, cond_dim: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q, self.kv = nn.Linear(d_model, d_model, bias=False), nn.Linear(cond_dim, 2 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model)
        nn.init.normal_(self.q.weight, std=d_model**-0.5)
        nn.init.normal_(self.kv.weight, std=cond_dim**-0.5)
        nn.init.normal_(self.out.weight, std=(d_model * n_layers) ** -0.5)
        nn.init.zeros_(self.out.bias)

    def project_kv(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, a, m, d) of features (b, m, cond_dim), computed once for a whole video."""
        k, v = self.kv(features).unflatten(-1, (2, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return self.out(attend(q, *kv).transpose(1, 2).reshape(x.shape))
