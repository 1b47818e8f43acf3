"""Reward, end of episode and game variables, from codes and actions.

None of them need be on the screen (health is not), so the model is recurrent: a GRU reads one latent frame's
codes and the actions that led into it at a time. It starts from the game variables as they were at the start of
the context. The reward is predicted twice, for an episode that goes on and for one that just ended, so that a
dream's reward agrees with the end it drew.

Dimensions: b batch, t latent frames, h w g rows, columns, codebooks, c condition, v game variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig:
    """Sizes, and the scale of what is predicted."""

    latent: tuple[int, int] = (8, 8)
    """Rows and columns of a frame's codes."""
    books: int = 1
    codes: int = 1024
    code_dim: int = 256
    condition_dim: int = 0
    variables: int = 0
    """Number of game variables."""
    variable_mean: tuple[float, ...] = ()
    variable_std: tuple[float, ...] = ()
    reward_std: float = 1.0
    """Root mean square of the recorded reward."""
    width: int = 256


class Outcome(NamedTuple):
    """What follows from each latent frame."""

    reward: Tensor
    """(b, t, 2): the reward on the way into the frame if the episode goes on, and if it ended there."""
    end: Tensor
    """(b, t) logit that the episode ended there."""
    variables: Tensor
    """(b, t, v) game variables."""


class OutcomeModel(nn.Module):
    """A GRU over latent frames."""

    codebook: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: OutcomeConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        shape, width = (config.books, config.codes, config.code_dim), config.width
        self.register_buffer("codebook", torch.zeros(shape) if codebook is None else codebook.clone())
        self.register_buffer("mean", torch.tensor(config.variable_mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.variable_std), persistent=False)
        positions = config.latent[0] * config.latent[1] * config.books
        self.look = nn.Sequential(nn.Linear(positions * config.code_dim, width), nn.LayerNorm(width), nn.GELU())
        self.act = nn.Linear(max(1, config.condition_dim), width)
        self.begin = nn.Linear(max(1, config.variables), width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 3 + config.variables)

    def first(self, variables: Tensor) -> Tensor:
        """The state (1, b, width) before a context whose first frame has game variables (b, v)."""
        known = (variables - self.mean) / self.std if self.config.variables else variables.new_zeros(len(variables), 1)
        return torch.tanh(self.begin(known))[None]

    def forward(self, codes: Tensor, condition: Tensor | None, state: Tensor) -> tuple[Outcome, Tensor]:
        """Codes (b, t, h, w, g), condition (b, t, c) and the state before them -> outcomes, the state after them."""
        flat = codes.flatten(2)
        book = torch.arange(flat.shape[-1], device=codes.device) % self.config.books
        seen = self.look(self.codebook[book, flat].flatten(2))
        done = self.act(seen.new_zeros(*seen.shape[:2], 1) if condition is None else condition)
        y, state = self.gru(seen + done, state)
        reward, end, variables = self.head(y).split([2, 1, self.config.variables], dim=-1)
        return Outcome(reward * self.config.reward_std, end[..., 0], variables * self.std + self.mean), state

    def loss(
        self, codes: Tensor, condition: Tensor, reward: Tensor, ended: Tensor, variables: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        """Squared errors of reward and variables at unit scale plus cross entropy of the end, over the known rows.

        All targets are (b, t, ...); the first row of each sequence must be known.
        """
        out, _ = self(codes, condition, self.first(variables[:, 0]))
        happened = out.reward.gather(-1, ended.long()[..., None])[..., 0]
        end = F.binary_cross_entropy_with_logits(out.end, ended.to(out.end.dtype), reduction="none")
        parts = {"reward": ((happened - reward) / self.config.reward_std).square(), "end": end}
        if self.config.variables:
            parts["variables"] = ((out.variables - variables) / self.std).square().mean(-1)
        means = {name: part[known].mean() for name, part in parts.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means}
