"""The outcome model: reward, termination and game variables, from codes and actions.

None of these need to be visible in the image (health is not), so the model is recurrent. At each latent frame a GRU
takes the frame's codes, the actions that led into it, and the previous game variables.

* Game variables. The model predicts a distribution over the recorded changes of each variable (64 quantiles where there
  are more distinct changes). A dream samples one change and continues from it. A predicted mean would add half a
  medikit where one may have been taken, and health would blur instead of being uncertain.
* Reward. It is predicted twice, for an episode that continues and for one that terminates here, so that a dream's
  reward matches the termination that was sampled.
* `predict_from_past`. Termination and changes are predicted from the frame at which they happen or, with this option,
  before it: from the hidden state, the action and the variables. ViZDoom renders no image of a death but repeats the
  previous frame. A model that gets that frame learns to detect the repetition, which a dream samples too rarely. Hits
  are also predicted better from the past than from a generated frame, perhaps for the same reason.
* `image_channels`. Codes of a recurrent VQ-VAE describe only what changes, so the model also takes the reconstruction.
* `n_stacked_frames`. Convolutions over the last latent frames show the model where things are moving. A linear layer
  over all codes of one frame cannot: it would have to learn the same motion separately at every position.

Dimensions: b batch, t latent frames, h w g rows, columns, codebooks, c condition, v game variables, k changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.image_encoder import ImageEncoder
from worldmodel.models.layers import Conv, Memory
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.utils.ranks import batch_mean


class OutcomePrediction(NamedTuple):
    """Predictions for each latent frame."""

    reward: Tensor
    """(b, t, 2) reward of the step into the frame, if the episode continues and if it terminates there."""
    done_logit: Tensor
    """(b, t) logit of the probability that the episode terminates there."""
    change_logits: Tensor
    """(b, t, v, k) logits of the changes of the game variables."""


class FrameStackEncoder(nn.Module):
    """Encodes the last latent frames: a causal convolution over time and space, then one over space."""

    def __init__(self, config: OutcomeConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.place_dim, 32)
        self.temporal_conv = Conv(32, 64, (config.n_stacked_frames, 3, 3), causal=True)
        self.spatial_conv = Conv(64, 32, (1, 3, 3), causal=True)

    def forward(self, vectors: Tensor, memory: Memory | None) -> Tensor:
        """(b, t, h, w, place_dim) -> (b, t, 32, h, w)."""
        x = self.embed(vectors).movedim(-1, 1)
        return F.gelu(self.spatial_conv(F.gelu(self.temporal_conv(x, memory)), memory)).transpose(1, 2)


class OutcomeModel(nn.Module):
    """A GRU over latent frames that predicts reward, termination and game variables."""

    codebook: Tensor
    condition_scale: Tensor
    variable_mean: Tensor
    variable_std: Tensor
    variable_changes: Tensor
    change_weights: Tensor
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
        weights = torch.tensor(config.change_weights) if config.change_weights else torch.ones_like(changes)
        self.register_buffer("change_weights", weights, persistent=False)
        if config.n_stacked_frames:
            self.frame_stack = FrameStackEncoder(config)
        inputs = config.latent_size[0] * config.latent_size[1] * (32 if config.n_stacked_frames else config.place_dim)
        if config.image_channels:
            *size, channels = config.frame_shape
            dim = config.image_channels
            self.image_encoder = ImageEncoder(channels, (size[0], size[1]), config.latent_size, dim, base=16)
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
        images: Tensor | None = None,
    ) -> tuple[OutcomePrediction, Tensor]:
        """Predict the outcomes of latent frames.

        Args:
            codes: (b, t, h, w, g).
            condition: Encoded actions that led into each frame (b, t, c), with c = 0 for none.
            previous: Game variables before each frame (b, t, v).
            state: GRU state (1, b, width) after the frames before the first one; None at the start.
            memory: Past activations of the convolutions, updated in place; None if the clip is not continued.
            images: Reconstruction of each latent frame (b, t, H, W, channels) uint8, for `image_channels`.

        Returns:
            The predictions, and the GRU state after the last frame.
        """
        codebook = torch.arange(codes.shape[-1], device=codes.device)
        vectors = self.codebook[codebook, codes].flatten(4)
        if self.config.image_channels:
            assert images is not None, "this model takes images"
            vectors = torch.cat([vectors, self.image_encoder(images).to(vectors.dtype)], dim=-1)
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
        if self.config.predict_from_past:  # from the state before each frame, so without the frame itself
            rest = self.past_head(torch.cat([torch.cat([past[0, :, None], y[:, :-1]], dim=1), inputs], dim=-1))
        changes = rest[..., 1:].unflatten(-1, self.variable_changes.shape)
        return OutcomePrediction(reward * self.config.reward_rms, rest[..., 0], changes), state

    def sample_variables(self, change_logits: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
        """Sample the next game variables.

        Args:
            change_logits: (b, v, k).
            previous: Game variables now (b, v).
            noise: Uniform random numbers (b, v).

        Returns:
            Game variables (b, v).
        """
        below = change_logits.softmax(-1).cumsum(-1) < noise[..., None]
        chosen = below.sum(-1).clamp(max=self.variable_changes.shape[-1] - 1)
        return self._possible_variables(previous).gather(-1, chosen[..., None])[..., 0]

    def expected_variables(self, change_logits: Tensor, previous: Tensor) -> Tensor:
        """Expected next game variables (b, v), the mean of `sample_variables`, from logits (b, v, k)."""
        return (change_logits.softmax(-1) * self._possible_variables(previous)).sum(-1)

    def _possible_variables(self, previous: Tensor) -> Tensor:
        """Possible next values (b, v, k) of the game variables (b, v), clipped to the recorded range."""
        return (previous[..., None] + self.variable_changes).clamp(
            self.variable_low[:, None], self.variable_high[:, None]
        )

    def errors(
        self,
        out: OutcomePrediction,
        reward: Tensor,
        ended: Tensor,
        variables: Tensor,
        previous: Tensor,
        change_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Errors of predictions, row by row.

        A change with weight w gets w times the cross entropy, of logits to which log w is added. The two cancel: the
        smallest error is still that of the true probabilities (logit adjustment, Menon et al., 2021).

        Args:
            out: The predictions.
            reward: (b, t).
            ended: Whether the episode terminated at the row, (b, t) bool.
            variables: Game variables (b, t, v).
            previous: Game variables before each row (b, t, v).
            change_weights: Weights of the changes of each variable (v, k); None for equal weights.

        Returns:
            "reward": squared error of the scaled reward; "done": cross entropy of the termination; "variables", if
            there are any: mean cross entropy of their changes. All are (b, t); entropies are in nats.
        """
        predicted = out.reward.gather(-1, ended.long()[..., None])[..., 0]
        done = F.binary_cross_entropy_with_logits(out.done_logit, ended.to(out.done_logit.dtype), reduction="none")
        errors = {"reward": ((predicted - reward) / self.config.reward_rms).square(), "done": done}
        if self.config.n_variables:
            change = self.change_index(variables, previous)
            weights = torch.ones_like(self.variable_changes) if change_weights is None else change_weights
            logits = out.change_logits + weights.log()
            entropy = F.cross_entropy(logits.flatten(0, 2), change.flatten(), reduction="none").view_as(change)
            weight = weights.expand_as(logits).gather(-1, change[..., None])[..., 0]
            errors["variables"] = (weight * entropy).mean(-1)
        return errors

    def change_index(self, variables: Tensor, previous: Tensor) -> Tensor:
        """The index of the possible change that is nearest to that of each game variable, (b, t, v)."""
        return (self.variable_changes - (variables - previous)[..., None]).abs().argmin(-1)

    def loss(
        self,
        codes: Tensor,
        condition: Tensor,
        reward: Tensor,
        ended: Tensor,
        variables: Tensor,
        mask: Tensor,
        images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The training loss: the sum of the means of `errors` with the weights of the config.

        The variables before the first row are unknown; those of the first row are used instead.

        Args:
            codes: (b, t, h, w, g).
            condition: Encoded actions (b, t, c).
            reward: (b, t).
            ended: Whether the episode terminated at the row, (b, t) bool.
            variables: Game variables (b, t, v).
            mask: Rows that count, (b, t) bool; the others are padding.
            images: As in `forward`.

        Returns:
            Scalars: "loss" and its parts.
        """
        previous = previous_variables(variables)
        out = self(codes, condition, previous, images=images)[0]
        parts = self.errors(out, reward, ended, variables, previous, self.change_weights)
        filled = mask.to(parts["done"].dtype).mean()
        share = filled / batch_mean(filled)  # 1 if the batch is not split; the first row of a sequence always counts
        means = {name: part[mask].mean() * share for name, part in parts.items()}
        return {"loss": torch.stack(list(means.values())).sum(), **means}


def previous_variables(variables: Tensor) -> Tensor:
    """The game variables before each of t rows (b, t, v); for the first row, its own."""
    return torch.cat([variables[:, :1], variables[:, :-1]], dim=1)
