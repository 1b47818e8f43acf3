"""Reward, end of episode and game variables, from codes and actions.

None of them need be on the screen (health is not), so the model is recurrent: a GRU reads one latent frame's
codes, the actions that led into it and the game variables before it at a time. It gives a distribution over the
recorded changes of each variable (64 quantiles of them where there are more), and a dream draws one and goes on from
there: a mean would give half a medikit for one that may have been taken, and a health that is spread out instead of
uncertain. The reward is predicted twice, for an episode that goes on and for one that just ended, so that a dream's
reward agrees with the end it drew.

Ends and changes are read from the frame that they came with, or, with `foretell`, before that frame is drawn: from the
state, the action and the variables. ViZDoom has no picture of a death, the frame before stands in for it, and a model
that is given the frame learns to look for that stillness, which a dream draws too seldom. That a hit is foretold better
than read from a dreamed frame may have the same reason.

With `sight` the model sees so many frames side by side, through convolutions: where something is going can only be told
from several frames and from its place in them, and a linear layer over all codes of one has to learn that anew for
every place.

Dimensions: b batch, t latent frames, h w g rows, columns, codebooks, c condition, v game variables, k changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import UserError
from worldmodel.layers import Conv, Memory
from worldmodel.settings import AboveZero, Channels, Count, Pixels, Settings


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig(Settings):
    """Sizes, and the scale of what is predicted."""

    latent: tuple[Pixels, Pixels] = (8, 8)
    """Rows and columns of a frame's codes."""
    books: Channels = 1
    codes: Channels = 1024
    code_dim: Channels = 256
    condition_dim: Count = 0
    condition_scale: tuple[AboveZero, ...] = ()
    """What its numbers are divided by; none for one-hot ones."""
    variables: Count = 0
    """Number of game variables."""
    variable_mean: tuple[float, ...] = ()
    variable_std: tuple[AboveZero, ...] = ()
    changes: tuple[tuple[float, ...], ...] = ()
    """For each variable its changes within a latent frame, equally many, ascending."""
    variable_low: tuple[float, ...] = ()
    """Smallest and ..."""
    variable_high: tuple[float, ...] = ()
    """... largest recorded value of each; what is drawn stays between them."""
    reward_std: AboveZero = 1.0
    """Root mean square of the recorded reward, about zero; checkpoints know it by this name."""
    width: Channels = 256
    foretell: bool = False
    """Ends and changes follow from what was before their frame, which is for engines that have no picture of them."""
    sight: Count = 0
    """Latent frames that convolutions see side by side; 0 for one linear layer over the codes of one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("variable_mean", "variable_std", "changes"):
            if len(getattr(self, name)) != self.variables:
                raise UserError(f"{name} must have a value for each of {self.variables} variables")
        for name in ("variable_low", "variable_high"):
            if getattr(self, name) and len(getattr(self, name)) != self.variables:
                raise UserError(f"{name} must have a value for each of {self.variables} variables, or none")
        if self.condition_scale and len(self.condition_scale) != self.condition_dim:
            raise UserError(f"a condition of {self.condition_dim} numbers has not {len(self.condition_scale)} scales")
        if len(set(map(len, self.changes))) > 1 or () in self.changes:
            raise UserError("changes must be equally many for each variable, and at least one")


class Outcome(NamedTuple):
    """What follows from each latent frame."""

    reward: Tensor
    """(b, t, 2): the reward on the way into the frame if the episode goes on, and if it ended there."""
    end: Tensor
    """(b, t) logit that the episode ended there."""
    changes: Tensor
    """(b, t, v, k) logits of the changes of the game variables."""


class Sight(nn.Module):
    """The last latent frames side by side: a causal convolution over them, then one within the frame."""

    def __init__(self, config: OutcomeConfig) -> None:
        super().__init__()
        self.place = nn.Linear(config.books * config.code_dim, 32)
        self.along = Conv(32, 64, (config.sight, 3, 3), causal=True)
        self.within = Conv(64, 32, (1, 3, 3), causal=True)

    def forward(self, vectors: Tensor, memory: Memory | None) -> Tensor:
        """(b, t, h, w, books * code_dim) -> (b, t, 32, h, w)."""
        x = self.place(vectors).movedim(-1, 1)
        return F.gelu(self.within(F.gelu(self.along(x, memory)), memory)).transpose(1, 2)


class OutcomeModel(nn.Module):
    """A GRU over latent frames."""

    codebook: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor
    changes: Tensor
    variable_low: Tensor
    variable_high: Tensor

    def __init__(self, config: OutcomeConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        shape, width = (config.books, config.codes, config.code_dim), config.width
        self.register_buffer("codebook", torch.zeros(shape) if codebook is None else codebook.clone())
        self.register_buffer("scale", torch.tensor(config.condition_scale or 1.0), persistent=False)
        self.register_buffer("mean", torch.tensor(config.variable_mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.variable_std), persistent=False)
        for name, none in (("variable_low", -torch.inf), ("variable_high", torch.inf)):
            bound = getattr(config, name) or (none,) * config.variables
            self.register_buffer(name, torch.tensor(bound), persistent=False)
        changes = torch.tensor(config.changes).view(config.variables, -1 if config.variables else 0)
        self.register_buffer("changes", changes, persistent=False)
        if config.sight:
            self.sight = Sight(config)
        inputs = config.latent[0] * config.latent[1] * (32 if config.sight else config.books * config.code_dim)
        self.look = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU())
        self.act = nn.Linear(max(1, config.condition_dim), width)
        self.know = nn.Linear(max(1, config.variables), width)
        self.gru = nn.GRU(width, width, batch_first=True)
        rest = 1 + self.changes.numel()
        self.head = nn.Linear(width, 2 if config.foretell else 2 + rest)
        if config.foretell:
            self.foretold = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, rest))

    def forward(
        self,
        codes: Tensor,
        condition: Tensor | None,
        before: Tensor,
        state: Tensor | None = None,
        memory: Memory | None = None,
    ) -> tuple[Outcome, Tensor]:
        """What follows from latent frames, and the state (1, b, width) after them.

        codes (b, t, h, w, g), condition (b, t, c), the game variables before each frame (b, t, v), and of the frames
        before the first the state, None at the start, and what convolutions remember.
        """
        book = torch.arange(codes.shape[-1], device=codes.device)
        vectors = self.codebook[book, codes].flatten(4)
        seen = self.look((self.sight(vectors, memory) if self.config.sight else vectors).flatten(2))
        done = self.act(seen.new_zeros(*seen.shape[:2], 1) if condition is None else condition / self.scale)
        known = (before - self.mean) / self.std if self.config.variables else seen.new_zeros(*seen.shape[:2], 1)
        given = done + self.know(known)
        past = seen.new_zeros(1, len(seen), self.config.width) if state is None else state
        y, state = self.gru(seen + given, past)
        reward, rest = self.head(y).tensor_split([2], dim=-1)
        if self.config.foretell:
            rest = self.foretold(torch.cat([torch.cat([past[0, :, None], y[:, :-1]], dim=1), given], dim=-1))
        changes = rest[..., 1:].unflatten(-1, self.changes.shape)
        return Outcome(reward * self.config.reward_std, rest[..., 0], changes), state

    def draw(self, changes: Tensor, before: Tensor, noise: Tensor) -> Tensor:
        """Game variables (b, v) after those before, from logits (b, v, k) and uniform noise (b, v)."""
        below = changes.softmax(-1).cumsum(-1) < noise[..., None]
        chosen = below.sum(-1).clamp(max=self.changes.shape[-1] - 1)
        return self._after(before).gather(-1, chosen[..., None])[..., 0]

    def expect(self, changes: Tensor, before: Tensor) -> Tensor:
        """The game variables (b, v) to expect after those before, from logits (b, v, k): the mean of `draw`."""
        return (changes.softmax(-1) * self._after(before)).sum(-1)

    def _after(self, before: Tensor) -> Tensor:
        """(b, v, k) what the game variables (b, v) can come to, kept within what was recorded."""
        return (before[..., None] + self.changes).clamp(self.variable_low[:, None], self.variable_high[:, None])

    def loss(
        self, codes: Tensor, condition: Tensor, reward: Tensor, ended: Tensor, variables: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        """Squared error of the reward at unit scale plus cross entropies of end and changes, over the known rows.

        All targets are (b, t, ...). What was before the first row is not known: its variables stand in.
        """
        before = preceding(variables)
        out, _ = self(codes, condition, before)
        happened = out.reward.gather(-1, ended.long()[..., None])[..., 0]
        end = F.binary_cross_entropy_with_logits(out.end, ended.to(out.end.dtype), reduction="none")
        parts = {"reward": ((happened - reward) / self.config.reward_std).square(), "end": end}
        if self.config.variables:
            change = (self.changes - (variables - before)[..., None]).abs().argmin(-1)
            entropy = F.cross_entropy(out.changes.flatten(0, 2), change.flatten(), reduction="none")
            parts["variables"] = entropy.view_as(change).mean(-1)
        means = {name: part[known].mean() for name, part in parts.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means}


def preceding(variables: Tensor) -> Tensor:
    """The game variables before each of t rows (b, t, v); before the first, its own."""
    return torch.cat([variables[:, :1], variables[:, :-1]], dim=1)
