"""What a batch of dreams knows between two steps, and what a step gives.

Dimensions: b lanes, s frames of a latent frame, h w g codes, v variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.models.attention import KVCache
from worldmodel.models.layers import Memory


@dataclass
class DreamState:
    """The state of a batch of dreams."""

    kv_cache: KVCache
    memory: Memory
    hidden: Tensor
    """(1, b, width) of the outcome model."""
    variables: Tensor
    """(b, v) the game variables now."""
    generators: list[torch.Generator]

    def clone(self) -> DreamState:
        """A copy that shares nothing with this one."""
        generators = [g.clone_state() for g in self.generators]
        memory = {layer: past.clone() for layer, past in self.memory.items()}
        return DreamState(self.kv_cache.clone(), memory, self.hidden.clone(), self.variables.clone(), generators)

    def select_lanes(self, index: Tensor) -> DreamState:
        """The lanes of an index, which may repeat them, as copies."""
        generators = [self.generators[i].clone_state() for i in index.tolist()]
        memory = {layer: past[index] for layer, past in self.memory.items()}
        return DreamState(
            self.kv_cache.select_lanes(index), memory, self.hidden[:, index], self.variables[index], generators
        )

    def tensors(self) -> list[Tensor]:
        return [*self.kv_cache.tensors(), *self.memory.values(), self.hidden, self.variables]

    def copy_(self, other: DreamState) -> None:
        """Take over the state of as many other lanes, but for their time and their luck, in place."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            if mine is not theirs:
                mine.copy_(theirs)

    def reseed(self, seeds: list[int]) -> None:
        """Give every lane other luck from here on."""
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def set_lanes(self, index: Tensor, other: DreamState) -> None:
        """Overwrite some lanes by those of another batch at the same time."""
        self.kv_cache.set_lanes(index, other.kv_cache)
        for layer, past in self.memory.items():
            past[index] = other.memory[layer]
        self.hidden[:, index], self.variables[index] = other.hidden, other.variables
        for lane, generator in zip(index.tolist(), other.generators, strict=True):
            self.generators[lane] = generator


@dataclass(frozen=True)
class DreamStep:
    """What one step of every lane gives."""

    frames: Tensor
    """(b, s, H, W, channels) uint8; the last one is the observation."""
    codes: Tensor
    """(b, 1, h, w, g)."""
    reward: Tensor
    """(b,)."""
    terminated: Tensor
    """(b,) bool, drawn from `done_prob` if the dream has ends."""
    done_prob: Tensor
    """(b,) the model's probability of an end."""
    variables: Tensor
    """(b, v), drawn."""
    expected_variables: Tensor
    """(b, v) the mean of what they were drawn from."""
    log_likelihood: Tensor
    """(b,) nats, of the codes that were drawn."""
    entropy: Tensor
    """(b,) nats, of what could have been drawn."""
