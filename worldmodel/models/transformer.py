"""The blocks of the prior's transformer, and its head.

Each pre-norm block has self-attention, optional cross-attention to conditioning frames, and feed-forward, with dropout
after each (Table 9). It runs in two ways: over a whole clip, or one pass at a time over some positions of the newest
frame, with the past in a cache. What all positions of a frame share (gains and biases from its condition, rotary
embedding, position embeddings) is computed once for all passes.

Dimensions: b batch, t frames, n positions of a frame with m codes each, k code values; x is (b, t, n, width).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.attention import Attention, CrossAttention, Mask
from worldmodel.models.conditioning import ConditionalNorm, Modulation
from worldmodel.models.dropout import Dropout
from worldmodel.models.prior_config import PriorConfig

WriteKV = Callable[[Tensor], Tensor]
"""Writes the keys and values of a pass to a layer's cache; returns all that the pass may attend to."""


class BlockContext(NamedTuple):
    """What all positions of some frames share in a block."""

    modulations: list[Modulation | None]
    """Biases and gains of its conditional norms."""
    cond_kv: tuple[Tensor, Tensor] | None
    """Keys and values of the conditioning frames."""


class StepContext(NamedTuple):
    """What all positions of some frames share, computed once for all passes."""

    blocks: list[BlockContext]
    """One for each block."""
    final_modulation: Modulation | None
    """Bias and gain of the last conditional norm."""
    position_embeddings: Tensor
    """(t or 1, n, width) position embeddings, or (b, t, n, width) with the features of images added."""
    rotary: Tensor | None
    """(2, t*n or 1, d) rotary embedding of each position's time; None for absolute time."""
    past_mask: Tensor | None = None
    """(b, keys) bool: which cached keys of past frames are valid; None if all are."""


class Block(nn.Module):
    """Self-attention, cross-attention to conditioning frames if there are any, and feed-forward.

    Each comes after a conditional norm and before dropout.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d_model, d_ff = config.d_model, config.d_ff
        self.norm1 = ConditionalNorm(d_model, config.condition_dim)
        self.attention = Attention(d_model, config.n_heads, config.n_layers, config.n_kv_heads or config.n_heads)
        self.norm2 = ConditionalNorm(d_model, config.condition_dim)
        self.ff_in, self.ff_out = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.dropout, self.attention_dropout = Dropout(config.dropout), config.attention_dropout
        if config.n_cond_frames:
            self.norm3 = ConditionalNorm(d_model, config.condition_dim)
            self.cross_attention = CrossAttention(d_model, config.n_heads, config.n_layers, config.cond_dim)
        self.has_cond_frames = bool(config.n_cond_frames)

    def context(self, condition: Tensor | None, features: Tensor | None) -> BlockContext:
        """Compute what all positions share, from the condition (b, t or 1, c) and the conditioning frames' features."""
        norms = [self.norm1, self.norm2, *([self.norm3] if self.has_cond_frames else [])]
        cond_kv = self.cross_attention.project_kv(features) if features is not None else None
        return BlockContext([norm.modulation(condition) for norm in norms], cond_kv)

    def after_attention(self, x: Tensor, context: BlockContext) -> Tensor:
        """The part of the block after self-attention, on x (b, t, n, width)."""
        if context.cond_kv is not None:
            x = x + self.dropout(self.cross_attention(self.norm3(x, context.modulations[2]), context.cond_kv))
        y = self.ff_in(self.norm2(x, context.modulations[1]))
        y = self.ff_out(y * torch.sigmoid(1.702 * y))  # the official code's approximation of GELU
        return x + (self.dropout(y) if self.training else y)

    def forward(self, x: Tensor, context: BlockContext, rotary: Tensor | None, mask: Mask) -> tuple[Tensor, Tensor]:
        """Run a whole clip (b, t, n, width); also returns its keys and values, for a cache."""
        q, kv = self.attention.project_qkv(self.norm1(x, context.modulations[0]), rotary)
        dropout = self.attention_dropout if self.training else 0.0
        x = x + self.dropout(self.attention.attend(q, kv, mask, x, dropout))
        return self.after_attention(x, context), kv

    def forward_pass(
        self, x: Tensor, context: BlockContext, rotary: Tensor | None, write: WriteKV, mask: Tensor | None
    ) -> Tensor:
        """Run one pass over some positions of the current frame.

        Args:
            x: (b, 1, positions, width).
            context: From `context`.
            rotary: Rotary embedding of the frame's time.
            write: Writes the keys and values of the pass to the cache.
            mask: What the positions attend to.
        """
        q, kv = self.attention.project_qkv(self.norm1(x, context.modulations[0]), rotary)
        x = x + self.attention.attend(q, write(kv), mask, x)
        return self.after_attention(x, context)


class Head(nn.Module):
    """Logits of the codes of a position, each conditioned on the position's features and the codes before it.

    For positions of one code it is a linear layer, as in the official code. For m codes it is a perceptron for each,
    with projections of the earlier codes added to its hidden layer (after MADE, Germain et al., 2015). Logits start at
    zero.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        m, d_model = config.codes_per_position, config.d_model
        self.codes_per_position = m
        self.projection = nn.Linear(d_model, m * d_model) if m > 1 else nn.Identity()
        self.code_projections = nn.ModuleList(
            nn.Linear(config.embedding_dim, k * d_model, bias=False) for k in range(m - 1, 0, -1)
        )
        self.out = nn.ModuleList(nn.Linear(d_model, config.n_codes) for _ in range(m))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def split_hidden(self, x: Tensor) -> list[Tensor]:
        """Project features (..., width) to the hidden layers of the m codes."""
        return list(self.projection(x).chunk(self.codes_per_position, dim=-1))

    def logits(self, hidden: list[Tensor]) -> Tensor:
        """Logits (..., k) of the next code, from the hidden layers of the codes that are left."""
        x = F.gelu(hidden[0]) if self.codes_per_position > 1 else hidden[0]
        return self.out[self.codes_per_position - len(hidden)](x)

    def condition_on(self, hidden: list[Tensor], vector: Tensor) -> list[Tensor]:
        """Condition the hidden layers of the later codes on the next code, whose vector is (..., embedding_dim)."""
        if len(hidden) == 1:
            return []
        update = self.code_projections[self.codes_per_position - len(hidden)](vector).chunk(len(hidden) - 1, dim=-1)
        return [x + y for x, y in zip(hidden[1:], update, strict=True)]

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Logits (..., m, k) of all codes, from features (..., width) and code vectors (..., m, embedding_dim)."""
        hidden, logits = self.split_hidden(x), []
        for k in range(self.codes_per_position):
            logits.append(self.logits(hidden))
            hidden = self.condition_on(hidden, vectors[..., k, :])
        return torch.stack(logits, dim=-2)
