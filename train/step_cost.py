"""What a training step costs on n ranks: its time, and the bytes that each rank sends. train/scaling.py uses it.

    step      = compute(b) + small + max(0, large - overlap * compute(b))     b clips on each rank
    operation = latency(n) + share(n) * bytes / bandwidth(n)                  small and large are sums of operations

* compute: per_step + per_clip * b, and never less than the host takes to launch a step.
* small: reductions that the step waits for. A VQ-VAE has five for its codebook, and every training has one to ask
  whether any rank should stop.
* large: the gradients, in float32. A part of the step can hide them, because they are reduced while the backward pass
  is still running. With FSDP2 they are scattered, and weights are gathered too.
* share: a ring sends 2 (n - 1) / n of the bytes for an all-reduce, and half of that for a gather or a scatter.
* latency: that of a tree, as NCCL counts it (src/graph/tuning.cc): through a machine, then over the machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from worldmodel.models.transformer import Block
from worldmodel.models.vqvae_config import VQVAEConfig

FLOAT, INT = 4, 8
"""Bytes of a float32 and of an int64."""
BUCKET = 25 << 20
"""Bytes of gradients that DistributedDataParallel reduces at once."""
Kind = Literal["all_reduce", "broadcast", "all_gather", "reduce_scatter"]


@dataclass(frozen=True)
class Collective:
    """An operation of all ranks."""

    kind: Kind
    bytes: float
    """Bytes of the whole tensor."""

    def sent(self, n: int) -> float:
        """Bytes that each of n ranks sends."""
        return (2 if self.kind == "all_reduce" else 1) * (n - 1) / n * self.bytes


@dataclass(frozen=True)
class Links:
    """What connects the ranks; seconds, and bytes per second of each rank."""

    bandwidth: float
    """Bandwidth between ranks of a machine."""
    latency: float
    """Latency of any operation, however close the ranks are."""
    near: float = 0.0
    """Latency from rank to rank in a machine."""
    far: float = 0.0
    """Latency from machine to machine."""
    network: float = math.inf
    """Bandwidth of each rank to other machines, while all ranks of its machine send."""
    ranks_per_machine: int = 8

    def seconds(self, collective: Collective, n: int) -> float:
        """Time of a collective operation of n ranks."""
        if n == 1:
            return 0.0
        local, machines = min(n, self.ranks_per_machine), -(-n // self.ranks_per_machine)
        hops = (local - 1) * self.near + math.log2(machines) * self.far
        wide = self.bandwidth if machines == 1 else min(self.bandwidth, self.network * local)
        return self.latency + (2 if collective.kind == "all_reduce" else 1) * hops + collective.sent(n) / wide


@dataclass(frozen=True)
class Compute:
    """Time of a step on one rank, in seconds."""

    per_step: float
    """Time of the optimizer and of everything else that does not depend on the number of clips."""
    per_clip: float
    least: float = 0.0
    """Time that the host takes to launch a step."""

    def seconds(self, clips: float) -> float:
        """Time of a step of some clips."""
        return max(self.per_step + self.per_clip * clips, self.least)


@dataclass(frozen=True)
class Traffic:
    """The collective operations of a step."""

    small: tuple[Collective, ...]
    large: tuple[Collective, ...]

    def sent(self, n: int) -> float:
        """Bytes that each of n ranks sends in a step."""
        return sum(each.sent(n) for each in self.small + self.large)


def step_seconds(compute: Compute, traffic: Traffic, links: Links, n: int, clips: float, overlap: float) -> float:
    """Time of a step with some clips on each of n ranks; `overlap` is the part of it that can hide gradients."""
    work = compute.seconds(clips)
    small, large = (sum(links.seconds(each, n) for each in group) for group in (traffic.small, traffic.large))
    return work + small + max(0.0, large - overlap * work)


def step_traffic(model: nn.Module, vqvae: VQVAEConfig | None, sharded: bool) -> Traffic:
    """The collective operations of a step of a model.

    Args:
        model: The model; only the sizes of its weights are used.
        vqvae: Its config, if it is a VQ-VAE.
        sharded: Whether it is spread over the ranks.
    """
    stop = Collective("all_reduce", 2 * 4)  # `any_rank` of two flags
    small = (*(codebook(vqvae) if vqvae else ()), stop)
    total = n_bytes(model)
    if not sharded:
        n = max(1, round(total / BUCKET))
        return Traffic(small, (Collective("all_reduce", total / n),) * n)
    blocks = [n_bytes(module) for module in model.modules() if isinstance(module, Block)]
    units = [total - sum(blocks), *blocks]
    # a block for its context, for its forward and for its backward pass; the rest once
    gathered = [Collective("all_gather", size) for size in (*units, *blocks, *blocks)]
    norm = Collective("all_reduce", FLOAT)  # of the gradient
    return Traffic((*small, norm), (*gathered, *(Collective("reduce_scatter", size) for size in units)))


def n_bytes(module: nn.Module) -> int:
    """Bytes of the weights of a module, and so of their gradients."""
    return FLOAT * sum(p.numel() for p in module.parameters() if p.requires_grad)


def codebook(config: VQVAEConfig) -> tuple[Collective, ...]:
    """The reductions of a quantizer: counts, sums, chosen places, features at them, and the codes' usage."""
    codes = config.n_codebooks * config.n_codes
    vectors = Collective("all_reduce", FLOAT * codes * config.embedding_dim)
    counts = Collective("all_reduce", FLOAT * codes)
    return (
        counts,
        vectors,
        Collective("broadcast", INT * config.n_codes),
        vectors,
        Collective("all_reduce", INT * codes),
    )


def fit_line(x: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit a line a + b x by least squares of relative errors, with a and b not below zero; returns (a, b)."""
    design = np.stack([np.ones(len(x)), np.asarray(x, float)], 1) / np.asarray(seconds)[:, None]
    a, b = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0].tolist()
    if min(a, b) >= 0:
        return a, b
    only = design[:, 1] if a < 0 else design[:, 0]
    alone = float(only.sum() / (only**2).sum())
    return (0.0, alone) if a < 0 else (alone, 0.0)
