"""The state of a batch of dreams between two steps, and the result of a step.

Dimensions: b lanes, s frames of a latent frame, h w g codes, v variables.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldmodel.generation.lane_random import random_states
from worldmodel.models.kv_cache import KVCache
from worldmodel.models.layers import Memory


@dataclass
class DreamState:
    """The state of a batch of dreams."""

    kv_cache: KVCache
    """The prior's keys and values of past latent frames, and the time of the next frame."""
    memory: Memory
    """Past activations of decoder and outcome model, or the pictures of a recurrent VQ-VAE."""
    hidden: Tensor
    """(1, b, width) hidden state of the outcome model's GRU."""
    variables: Tensor
    """(b, v) current game variables."""
    random: Tensor
    """(b, 2) int64 random state of each lane; see lane_random.py."""

    def clone(self) -> DreamState:
        """A copy that shares no memory with this one."""
        memory = {layer: past.clone() for layer, past in self.memory.items()}
        return DreamState(
            self.kv_cache.clone(), memory, self.hidden.clone(), self.variables.clone(), self.random.clone()
        )

    def select_lanes(self, index: Tensor) -> DreamState:
        """Copies of the lanes at `index`, which may name a lane more than once."""
        memory = {layer: past[index] for layer, past in self.memory.items()}
        return DreamState(
            self.kv_cache.select_lanes(index), memory, self.hidden[:, index], self.variables[index], self.random[index]
        )

    def tensors(self) -> list[Tensor]:
        """All tensors of the state, in a fixed order."""
        return [*self.kv_cache.tensors(), *self.memory.values(), self.hidden, self.variables, self.random]

    def copy_(self, other: DreamState) -> None:
        """Overwrite the tensors with those of equally many other lanes; the time stays."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            if mine is not theirs:
                mine.copy_(theirs)

    def reseed(self, seeds: list[int]) -> None:
        """Reseed every lane."""
        self.random = random_states(seeds, self.random.device)

    def set_lanes(self, index: Tensor, other: DreamState) -> None:
        """Overwrite the lanes at `index` with those of another batch, whose `kv_cache.time` must be the same."""
        self.kv_cache.set_lanes(index, other.kv_cache)
        for layer, past in self.memory.items():
            past[index] = other.memory[layer]
        self.hidden[:, index], self.variables[index] = other.hidden, other.variables
        self.random[index] = other.random


@dataclass(frozen=True)
class DreamStep:
    """The result of one step of every lane."""

    frames: Tensor
    """(b, s, H, W, channels) uint8 images; the last one is the observation."""
    codes: Tensor
    """(b, 1, h, w, g) sampled codes of the latent frame."""
    reward: Tensor
    """(b,) reward of the step."""
    terminated: Tensor
    """(b,) bool, sampled from `done_prob`; always False if `Dream.sample_done` is off."""
    done_prob: Tensor
    """(b,) predicted probability of termination."""
    expected_reward: Tensor
    """(b,) mean of the reward over whether the episode terminates."""
    variables: Tensor
    """(b, v) sampled game variables."""
    expected_variables: Tensor
    """(b, v) mean of the distribution that the game variables were sampled from."""
    log_likelihood: Tensor
    """(b,) log-likelihood of the sampled codes under the prior, in nats."""
    entropy: Tensor
    """(b,) sum of the entropies of the distributions that the codes were sampled from, in nats."""
