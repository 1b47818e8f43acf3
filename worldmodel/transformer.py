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

from worldmodel.attention import Attention, CrossAttention, Mask
from worldmodel.conditioning import ConditionalNorm, Modulation
from worldmodel.dropout import Dropout
from worldmodel.prior_config import PriorConfig

Write = Callable[[Tensor], Tensor]
"""Puts the keys and values of a pass into a layer's cache; returns all that the pass may see."""


class Layer(NamedTuple):
    """What all positions of some frames share in a block."""

    norms: list[Modulation | None]
    """Of its conditional norms."""
    seen: tuple[Tensor, Tensor] | None
    """Keys and values of the conditioning frames."""


class Shared(NamedTuple):
    """What all positions of some frames share, worked out once for them and not once a pass."""

    layers: list[Layer]
    norm: Modulation | None
    """Of the last conditional norm."""
    places: Tensor
    """(t or 1, n, width) position embeddings."""
    turn: Tensor | None
    """The rotation of each position's time, or of the one frame's."""
    past: Tensor | None = None
    """(b, keys) which cached keys of past frames are there, if not all are."""


class Block(nn.Module):
    """Attention, a look at conditioning frames and feed-forward, each after a conditional norm and before dropout."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.feedforward
        self.norm1 = ConditionalNorm(width, config.condition_dim)
        self.attention = Attention(width, config.heads, config.layers, config.kv_heads or config.heads)
        self.norm2 = ConditionalNorm(width, config.condition_dim)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.attention_dropout = Dropout(config.dropout), config.attention_dropout
        if config.seen:
            self.norm3 = ConditionalNorm(width, config.condition_dim)
            self.look = CrossAttention(width, config.heads, config.layers, config.units)
        self.looks = bool(config.seen)

    def share(self, condition: Tensor | None, features: Tensor | None) -> Layer:
        """What is worked out once, from the condition (b, t or 1, c) and the features of the conditioning frames."""
        norms = [self.norm1, self.norm2, *([self.norm3] if self.looks else [])]
        seen = self.look.pair(features) if features is not None else None
        return Layer([norm.modulation(condition) for norm in norms], seen)

    def rest(self, x: Tensor, layer: Layer) -> Tensor:
        """What comes after self-attention."""
        if layer.seen is not None:
            x = x + self.dropout(self.look(self.norm3(x, layer.norms[2]), layer.seen))
        y = self.widen(self.norm2(x, layer.norms[1]))
        y = self.narrow(y * torch.sigmoid(1.702 * y))  # GELU as the official code has it
        return x + (self.dropout(y) if self.training else y)

    def forward(self, x: Tensor, layer: Layer, turn: Tensor | None, mask: Mask) -> tuple[Tensor, Tensor]:
        """A whole clip; also its keys and values, for a cache."""
        q, pair = self.attention.project(self.norm1(x, layer.norms[0]), turn)
        dropout = self.attention_dropout if self.training else 0.0
        x = x + self.dropout(self.attention.attend(q, pair, mask, x, dropout))
        return self.rest(x, layer), pair

    def step(self, x: Tensor, layer: Layer, turn: Tensor | None, write: Write, mask: Tensor | None) -> Tensor:
        """One pass over some positions of the current frame, (b, 1, positions, width)."""
        q, pair = self.attention.project(self.norm1(x, layer.norms[0]), turn)
        x = x + self.attention.attend(q, write(pair), mask, x)
        return self.rest(x, layer)


class Head(nn.Module):
    """Logits of the codes of a position, each given the position's features and the codes before it.

    A position of one code has the official code's linear layer. With m codes it is a perceptron for each, to whose
    hidden layer the codes before are added (after MADE, Germain et al., 2015). The outputs start at zero.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        m, width = config.group, config.width
        self.group = m
        self.look = nn.Linear(width, m * width) if m > 1 else nn.Identity()
        self.told = nn.ModuleList(nn.Linear(config.code_dim, k * width, bias=False) for k in range(m - 1, 0, -1))
        self.out = nn.ModuleList(nn.Linear(width, config.codes) for _ in range(m))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def begin(self, x: Tensor) -> list[Tensor]:
        """Features (..., width) -> the hidden layer of each code to come."""
        return list(self.look(x).chunk(self.group, dim=-1))

    def logits(self, hidden: list[Tensor]) -> Tensor:
        """(..., k) of the next code."""
        x = F.gelu(hidden[0]) if self.group > 1 else hidden[0]
        return self.out[self.group - len(hidden)](x)

    def tell(self, hidden: list[Tensor], vector: Tensor) -> list[Tensor]:
        """What is left after the next code turned out to be the one of `vector` (..., code_dim)."""
        if len(hidden) == 1:
            return []
        news = self.told[self.group - len(hidden)](vector).chunk(len(hidden) - 1, dim=-1)
        return [x + y for x, y in zip(hidden[1:], news, strict=True)]

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Features (..., width) and all codes' vectors (..., m, code_dim) -> logits (..., m, k)."""
        hidden, logits = self.begin(x), []
        for k in range(self.group):
            logits.append(self.logits(hidden))
            hidden = self.tell(hidden, vectors[..., k, :])
        return torch.stack(logits, dim=-2)
