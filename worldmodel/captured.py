"""A step of a batch of dreams as one CUDA graph: one launch instead of a thousand.

A step of a small model is a thousand kernels of a few microseconds, and Python takes longer to ask for each than a GPU
to do it. Once the ring of cached frames is full, in every lane, each step of the batch is the same kernels on the same
shapes: they are recorded once, and replayed. What differs from step to step goes through fixed buffers: the
lanes' state, in and out, their actions and random numbers, and the rotation of the frame's time, which else is a
number that Python knows and a graph would repeat for ever. The frame is put into its slot of the ring outside.

Lanes come and go by value, so that snapshots, forks and other lanes of the same dream never share a buffer; the copies
are of the caches once, which a step reads in every pass anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.lanes import Lanes, Step
from worldmodel.prior import Prior
from worldmodel.transformer import Shared

Imagine = Callable[[Lanes, Shared, Tensor, Tensor], Step]
"""A step of lanes whose frame has begun and is not finished: `Dream.imagine`."""


class Captured:
    """The step of a dream for as many lanes as these, whose ring is full."""

    def __init__(self, imagine: Imagine, prior: Prior, lanes: Lanes, condition: Tensor, noise: Tensor) -> None:
        self.imagine, self.prior, self.lanes = imagine, prior, replace(lanes.clone(), generators=[])
        self.condition, self.noise = condition.clone(), noise.clone()
        self.turn = self._turn(lanes)
        self.replay = record(self._work) if noise.device.type == "cuda" else self._work

    def __call__(self, lanes: Lanes, condition: Tensor, noise: Tensor) -> Step:
        """Move lanes on by one latent frame under a condition (b, c), with noise (b, n)."""
        self.lanes.copy_(lanes)
        self.condition.copy_(condition)
        self.noise.copy_(noise)
        self.turn.copy_(self._turn(lanes))
        self.replay()
        lanes.copy_(self.lanes)
        self.prior.finish(lanes.cache)
        return Step(*(tensor.clone() for tensor in vars(self.out).values()))

    def _turn(self, lanes: Lanes) -> Tensor:
        turn = self.prior.turn(lanes.cache.time)
        assert turn is not None, "time is relative in a dream"
        return turn

    def _work(self) -> None:
        """What is recorded: a step from the buffers into the buffers."""
        lanes = replace(self.lanes, memory=dict(self.lanes.memory))
        lanes.cache.done = 0
        told = self.condition.to(self.prior.start.dtype)
        shared = self.prior.shared(lanes.cache.time, 1, told[:, None], None)._replace(turn=self.turn)
        self.out = self.imagine(lanes, shared, self.condition, self.noise)
        self.lanes.copy_(lanes)


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Record what work does on the GPU, after a few warm-ups aside; returns what does it again."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
