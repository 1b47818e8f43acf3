"""Reward, end of episode and game variables, from codes and actions.

None of them need be on the screen (health is not), so the model is recurrent: a GRU reads one latent frame's
codes, the actions that led into it and the game variables before it at a time. It gives a distribution over the
recorded changes of each variable (64 quantiles of them where there are more), and a dream draws one and goes on from
there: a mean would give half a medikit for one that may have been taken, and a health that is spread out instead of
uncertain. The reward is predicted twice, for an episode that goes on and for one that just ended, so that a dream's
reward agrees with the end it drew.

Ends and changes are read from the frame that they came with, or, with `predict_from_past`, before that frame is drawn:
from the state, the action and the variables. ViZDoom has no picture of a death, the frame before stands in for it, and
a model that is given the frame learns to look for that stillness, which a dream draws too seldom. That a hit is
foretold better than read from a dreamed frame may have the same reason.

With `n_stacked_frames` the model sees so many frames side by side, through convolutions: where something is going can
only be told from several frames and from its place in them, and a linear layer over all codes of one has to learn that
anew for every place.

Dimensions: b batch, t latent frames, h w g rows, columns, codebooks, c condition, v game variables, k changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.layers import Conv, Memory
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AboveZero, Channels, Count, Pixels, Settings


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig(Settings):
    """Sizes, and the scale of what is predicted."""

    latent_size: tuple[Pixels, Pixels] = (8, 8)
    """Rows and columns of a frame's codes."""
    n_codebooks: Channels = 1
    n_codes: Channels = 1024
    embedding_dim: Channels = 256
    condition_dim: Count = 0
    condition_scale: tuple[AboveZero, ...] = ()
    """What its numbers are divided by; none for one-hot ones."""
    n_variables: Count = 0
    """Number of game variables."""
    variable_mean: tuple[float, ...] = ()
    variable_std: tuple[AboveZero, ...] = ()
    variable_changes: tuple[tuple[float, ...], ...] = ()
    """For each variable its changes within a latent frame, equally many, ascending."""
    variable_low: tuple[float, ...] = ()
    """Smallest and ..."""
    variable_high: tuple[float, ...] = ()
    """... largest recorded value of each; what is drawn stays between them."""
    reward_rms: AboveZero = 1.0
    """Root mean square of the recorded reward, about zero; checkpoints know it by this name."""
    hidden_dim: Channels = 256
    predict_from_past: bool = False
    """Ends and changes follow from what was before their frame, which is for engines that have no picture of them."""
    n_stacked_frames: Count = 0
    """Latent frames that convolutions see side by side; 0 for one linear layer over the codes of one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("variable_mean", "variable_std", "variable_changes"):
            if len(getattr(self, name)) != self.n_variables:
                raise UserError(f"{name} must have a value for each of {self.n_variables} variables")
        for name in ("variable_low", "variable_high"):
            if getattr(self, name) and len(getattr(self, name)) != self.n_variables:
                raise UserError(f"{name} must have a value for each of {self.n_variables} variables, or none")
        if self.condition_scale and len(self.condition_scale) != self.condition_dim:
            raise UserError(f"a condition of {self.condition_dim} numbers has not {len(self.condition_scale)} scales")
        if len(set(map(len, self.variable_changes))) > 1 or () in self.variable_changes:
            raise UserError("variable_changes must be equally many for each variable, and at least one")


class OutcomePrediction(NamedTuple):
    """What follows from each latent frame."""

    reward: Tensor
    """(b, t, 2): the reward on the way into the frame if the episode goes on, and if it ended there."""
    done_logit: Tensor
    """(b, t) logit that the episode ended there."""
    change_logits: Tensor
    """(b, t, v, k) logits of the changes of the game variables."""


class FrameStackEncoder(nn.Module):
    """The last latent frames side by side: a causal convolution over them, then one within the frame."""

    def __init__(self, config: OutcomeConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.n_codebooks * config.embedding_dim, 32)
        self.temporal_conv = Conv(32, 64, (config.n_stacked_frames, 3, 3), causal=True)
        self.spatial_conv = Conv(64, 32, (1, 3, 3), causal=True)

    def forward(self, vectors: Tensor, memory: Memory | None) -> Tensor:
        """(b, t, h, w, books * code_dim) -> (b, t, 32, h, w)."""
        x = self.embed(vectors).movedim(-1, 1)
        return F.gelu(self.spatial_conv(F.gelu(self.temporal_conv(x, memory)), memory)).transpose(1, 2)


class OutcomeModel(nn.Module):
    """A GRU over latent frames."""

    codebook: Tensor
    condition_scale: Tensor
    variable_mean: Tensor
    variable_std: Tensor
    variable_changes: Tensor
    variable_low: Tensor
    variable_high: Tensor

    def __init__(self, config: OutcomeConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        shape, width = (config.n_codebooks, config.n_codes, config.embedding_dim), config.hidden_dim
        self.register_buffer("codebook", torch.zeros(shape) if codebook is None else codebook.clone())
        self.register_buffer("condition_scale", torch.tensor(config.condition_scale or 1.0), persistent=False)
        self.register_buffer("variable_mean", torch.tensor(config.variable_mean), persistent=False)
        self.register_buffer("variable_std", torch.tensor(config.variable_std), persistent=False)
        for name, none in (("variable_low", -torch.inf), ("variable_high", torch.inf)):
            bound = getattr(config, name) or (none,) * config.n_variables
            self.register_buffer(name, torch.tensor(bound), persistent=False)
        changes = torch.tensor(config.variable_changes).view(config.n_variables, -1 if config.n_variables else 0)
        self.register_buffer("variable_changes", changes, persistent=False)
        if config.n_stacked_frames:
            self.frame_stack = FrameStackEncoder(config)
        inputs = (
            config.latent_size[0]
            * config.latent_size[1]
            * (32 if config.n_stacked_frames else config.n_codebooks * config.embedding_dim)
        )
        self.encoder = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU())
        self.action_embedding = nn.Linear(max(1, config.condition_dim), width)
        self.variable_embedding = nn.Linear(max(1, config.n_variables), width)
        self.gru = nn.GRU(width, width, batch_first=True)
        rest = 1 + self.variable_changes.numel()
        self.head = nn.Linear(width, 2 if config.predict_from_past else 2 + rest)
        if config.predict_from_past:
            self.past_head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, rest))

    def forward(
        self,
        codes: Tensor,
        condition: Tensor | None,
        previous: Tensor,
        state: Tensor | None = None,
        memory: Memory | None = None,
    ) -> tuple[OutcomePrediction, Tensor]:
        """What follows from latent frames, and the state (1, b, width) after them.

        codes (b, t, h, w, g), condition (b, t, c), the game variables before each frame (b, t, v), and of the frames
        before the first the state, None at the start, and what convolutions remember.
        """
        book = torch.arange(codes.shape[-1], device=codes.device)
        vectors = self.codebook[book, codes].flatten(4)
        frame_features = self.encoder(
            (self.frame_stack(vectors, memory) if self.config.n_stacked_frames else vectors).flatten(2)
        )
        action_features = self.action_embedding(
            frame_features.new_zeros(*frame_features.shape[:2], 1)
            if condition is None
            else condition / self.condition_scale
        )
        variable_features = (
            (previous - self.variable_mean) / self.variable_std
            if self.config.n_variables
            else frame_features.new_zeros(*frame_features.shape[:2], 1)
        )
        inputs = action_features + self.variable_embedding(variable_features)
        past = frame_features.new_zeros(1, len(frame_features), self.config.hidden_dim) if state is None else state
        y, state = self.gru(frame_features + inputs, past)
        reward, rest = self.head(y).tensor_split([2], dim=-1)
        if self.config.predict_from_past:
            rest = self.past_head(torch.cat([torch.cat([past[0, :, None], y[:, :-1]], dim=1), inputs], dim=-1))
        changes = rest[..., 1:].unflatten(-1, self.variable_changes.shape)
        return OutcomePrediction(reward * self.config.reward_rms, rest[..., 0], changes), state

    def sample_variables(self, change_logits: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
        """Game variables (b, v) after those before, from logits (b, v, k) and uniform noise (b, v)."""
        below = change_logits.softmax(-1).cumsum(-1) < noise[..., None]
        chosen = below.sum(-1).clamp(max=self.variable_changes.shape[-1] - 1)
        return self._possible_variables(previous).gather(-1, chosen[..., None])[..., 0]

    def expected_variables(self, change_logits: Tensor, previous: Tensor) -> Tensor:
        """The game variables (b, v) to expect after those before, from logits (b, v, k): the mean of
        `sample_variables`."""
        return (change_logits.softmax(-1) * self._possible_variables(previous)).sum(-1)

    def _possible_variables(self, previous: Tensor) -> Tensor:
        """(b, v, k) what the game variables (b, v) can come to, kept within what was recorded."""
        return (previous[..., None] + self.variable_changes).clamp(
            self.variable_low[:, None], self.variable_high[:, None]
        )

    def loss(
        self, codes: Tensor, condition: Tensor, reward: Tensor, ended: Tensor, variables: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Squared error of the reward at unit scale plus cross entropies of end and changes, over the known rows.

        All targets are (b, t, ...). What was before the first row is not known: its variables stand in.
        """
        previous = previous_variables(variables)
        out, _ = self(codes, condition, previous)
        predicted_reward = out.reward.gather(-1, ended.long()[..., None])[..., 0]
        done_loss = F.binary_cross_entropy_with_logits(out.done_logit, ended.to(out.done_logit.dtype), reduction="none")
        parts = {"reward": ((predicted_reward - reward) / self.config.reward_rms).square(), "done": done_loss}
        if self.config.n_variables:
            change = (self.variable_changes - (variables - previous)[..., None]).abs().argmin(-1)
            entropy = F.cross_entropy(out.change_logits.flatten(0, 2), change.flatten(), reduction="none")
            parts["variables"] = entropy.view_as(change).mean(-1)
        means = {name: part[mask].mean() for name, part in parts.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means}


def previous_variables(variables: Tensor) -> Tensor:
    """The game variables before each of t rows (b, t, v); before the first, its own."""
    return torch.cat([variables[:, :1], variables[:, :-1]], dim=1)
