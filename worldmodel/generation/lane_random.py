"""Random numbers of dreams, for all lanes at once and on their device.

Each lane has a seed and a counter. A number is a hash of seed, counter and position, so it does not depend on the other
lanes of the batch or on the device, and the random state of a lane is two integers that are copied like any tensor.
Generators of PyTorch would draw lane by lane on the CPU. With a thousand lanes that takes 12 ms for each step.

The hash is the output function of SplitMix64 (Steele, Lea and Flood, 2014: "Fast splittable pseudorandom number
generators"). Its products wrap around at 64 bits, as those of int64 tensors do.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""SplitMix64's step, as a signed number: 2^64 divided by the golden ratio."""
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
BITS = 24
"""Bits of a number, as many as the significand of a float32."""


def random_states(seeds: list[int], device: torch.device | str = "cpu") -> Tensor:
    """The random state of lanes with these seeds: (b, 2) int64, seed and counter.

    Args:
        seeds: Whole numbers from -2^63 to 2^64 - 1.
        device: Device of the state.
    """
    signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds]
    return torch.tensor([[seed, 0] for seed in signed], dtype=torch.int64, device=device).reshape(-1, 2)


def uniform(states: Tensor, n: int) -> Tensor:
    """Draw n numbers for each lane.

    Args:
        states: (b, 2) int64; the counters go up by 1, in place.
        n: Numbers for each lane.

    Returns:
        (b, n) float32, uniform in [0, 1).
    """
    seed, counter = states.unbind(1)
    start = _hash(_hash(seed) + GOLDEN * (counter + 1))
    positions = GOLDEN * torch.arange(1, n + 1, device=states.device)
    counter += 1
    return _shift(_hash(start[:, None] + positions), 64 - BITS).float() * 2.0**-BITS


def _hash(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * FACTORS[0]
    x = (x ^ _shift(x, 27)) * FACTORS[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, n: int) -> Tensor:
    """x >> n with zeros from the left; int64 alone would repeat the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)
