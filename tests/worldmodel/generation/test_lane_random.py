"""The random numbers of dreams: what SplitMix64 says, uniform, and each lane's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldmodel.generation.lane_random import random_states, uniform

WORD = 2**64 - 1


def finalize(x: int) -> int:
    """SplitMix64's output function with Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def expected(seed: int, counter: int, n: int) -> list[float]:
    golden = 0x9E3779B97F4A7C15
    start = finalize((finalize(seed & WORD) + golden * (counter + 1)) & WORD)
    return [(finalize((start + golden * (i + 1)) & WORD) >> 40) / 2**24 for i in range(n)]


def test_the_hash_is_that_of_splitmix64() -> None:
    # the first outputs for seed 1234567, as other implementations have them
    assert [finalize((1234567 + 0x9E3779B97F4A7C15 * k) & WORD) for k in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    seeds = [0, 1, 2**63 - 1, 2**64 - 1, -3]
    states = random_states(seeds)
    for counter in range(3):
        drawn = uniform(states, 5)
        assert drawn.dtype == torch.float32 and drawn.shape == (5, 5)
        assert drawn.tolist() == [expected(seed, counter, 5) for seed in seeds]


def test_a_lane_draws_the_same_in_any_batch() -> None:
    many, alone = random_states(list(range(100))), random_states([42])
    for _ in range(3):
        assert torch.equal(uniform(many, 7)[42], uniform(alone, 7)[0])
    assert uniform(random_states([]), 7).shape == (0, 7)


@pytest.mark.parametrize("along", ["positions", "counters", "seeds"])
def test_numbers_are_uniform_and_independent(along: str) -> None:
    """Along each axis: the histogram, and the correlation of neighbors, are those of independent uniform numbers."""
    n = 20_000
    if along == "positions":
        x = uniform(random_states([5]), n)[0]
    elif along == "seeds":
        x = uniform(random_states(list(range(n))), 1)[:, 0]
    else:
        states = random_states([5])
        x = torch.cat([uniform(states, 1)[0] for _ in range(n)])
    assert x.min() >= 0 and x.max() < 1
    counts = np.histogram(x.numpy(), 100, (0, 1))[0]
    chi_square = float(((counts - n / 100) ** 2 / (n / 100)).sum())
    assert 50 < chi_square < 160  # 99 degrees of freedom: outside with a probability of 1e-4
    for lag in (1, 2, 7):
        r = np.corrcoef(x[:-lag].numpy(), x[lag:].numpy())[0, 1]
        assert abs(r) < 4 / n**0.5
    bits = (x.double() * 2**24).long()
    for k in range(24):
        assert abs(float(((bits >> k) & 1).double().mean()) - 0.5) < 4 * 0.5 / n**0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: random numbers that are drawn on one")
def test_a_gpu_draws_the_same() -> None:
    here, there = random_states([1, 2**64 - 1]), random_states([1, 2**64 - 1], "cuda")
    for _ in range(3):
        assert torch.equal(uniform(here, 9), uniform(there, 9).cpu())
