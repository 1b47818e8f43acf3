"""The blocks of the prior's transformer, and its head.

Pre-norm blocks of self-attention, cross-attention to conditioning frames where there are any, and feed-forward, with
dropout after each (Table 9), are run in two ways: over a whole clip, or one pass at a time over some positions of the
newest frame, with the past in a cache. What all positions of a
frame share (gains and biases from its condition, its rotation in time, position embeddings) is worked out once for all
passes.

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
"""Puts the keys and values of a pass into a layer's cache; returns all that the pass may see."""


class BlockContext(NamedTuple):
    """What all positions of some frames share in a block."""

    modulations: list[Modulation | None]
    """Of its conditional norms."""
    cond_kv: tuple[Tensor, Tensor] | None
    """Keys and values of the conditioning frames."""


class StepContext(NamedTuple):
    """What all positions of some frames share, worked out once for them and not once a pass."""

    blocks: list[BlockContext]
    final_modulation: Modulation | None
    """Of the last conditional norm."""
    position_embeddings: Tensor
    """(t or 1, n, width) position embeddings."""
    rotary: Tensor | None
    """The rotation of each position's time, or of the one frame's."""
    past_mask: Tensor | None = None
    """(b, keys) which cached keys of past frames are there, if not all are."""


class Block(nn.Module):
    """Attention, a look at conditioning frames and feed-forward, each after a conditional norm and before dropout."""

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
        """What is worked out once, from the condition (b, t or 1, c) and the features of the conditioning frames."""
        norms = [self.norm1, self.norm2, *([self.norm3] if self.has_cond_frames else [])]
        cond_kv = self.cross_attention.project_kv(features) if features is not None else None
        return BlockContext([norm.modulation(condition) for norm in norms], cond_kv)

    def after_attention(self, x: Tensor, context: BlockContext) -> Tensor:
        """What comes after self-attention."""
        if context.cond_kv is not None:
            x = x + self.dropout(self.cross_attention(self.norm3(x, context.modulations[2]), context.cond_kv))
        y = self.ff_in(self.norm2(x, context.modulations[1]))
        y = self.ff_out(y * torch.sigmoid(1.702 * y))  # GELU as the official code has it
        return x + (self.dropout(y) if self.training else y)

    def forward(self, x: Tensor, context: BlockContext, rotary: Tensor | None, mask: Mask) -> tuple[Tensor, Tensor]:
        """A whole clip; also its keys and values, for a cache."""
        q, kv = self.attention.project_qkv(self.norm1(x, context.modulations[0]), rotary)
        dropout = self.attention_dropout if self.training else 0.0
        x = x + self.dropout(self.attention.attend(q, kv, mask, x, dropout))
        return self.after_attention(x, context), kv

    def forward_pass(
        self, x: Tensor, context: BlockContext, rotary: Tensor | None, write: WriteKV, mask: Tensor | None
    ) -> Tensor:
        """One pass over some positions of the current frame, (b, 1, positions, width)."""
        q, kv = self.attention.project_qkv(self.norm1(x, context.modulations[0]), rotary)
        x = x + self.attention.attend(q, write(kv), mask, x)
        return self.after_attention(x, context)


class Head(nn.Module):
    """Logits of the codes of a position, each given the position's features and the codes before it.

    A position of one code has the official code's linear layer. With m codes it is a perceptron for each, to whose
    hidden layer the codes before are added (after MADE, Germain et al., 2015). The outputs start at zero.
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
        """Features (..., width) -> the hidden layer of each code to come."""
        return list(self.projection(x).chunk(self.codes_per_position, dim=-1))

    def logits(self, hidden: list[Tensor]) -> Tensor:
        """(..., k) of the next code."""
        x = F.gelu(hidden[0]) if self.codes_per_position > 1 else hidden[0]
        return self.out[self.codes_per_position - len(hidden)](x)

    def condition_on(self, hidden: list[Tensor], vector: Tensor) -> list[Tensor]:
        """What is left after the next code turned out to be the one of `vector` (..., code_dim)."""
        if len(hidden) == 1:
            return []
        update = self.code_projections[self.codes_per_position - len(hidden)](vector).chunk(len(hidden) - 1, dim=-1)
        return [x + y for x, y in zip(hidden[1:], update, strict=True)]

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Features (..., width) and all codes' vectors (..., m, code_dim) -> logits (..., m, k)."""
        hidden, logits = self.split_hidden(x), []
        for k in range(self.codes_per_position):
            logits.append(self.logits(hidden))
            hidden = self.condition_on(hidden, vectors[..., k, :])
        return torch.stack(logits, dim=-2)
