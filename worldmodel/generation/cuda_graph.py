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

from worldmodel.generation.dream_state import DreamState, DreamStep
from worldmodel.models.prior import Prior
from worldmodel.models.transformer import StepContext

StepFn = Callable[[DreamState, StepContext, Tensor, Tensor], DreamStep]
"""A step of lanes whose frame has begun and is not finished: `Dream.predict_step`."""


class CudaGraphStep:
    """The step of a dream for as many lanes as these, whose ring is full."""

    def __init__(self, step_fn: StepFn, prior: Prior, lanes: DreamState, condition: Tensor, noise: Tensor) -> None:
        self.step_fn, self.prior, self.lanes = step_fn, prior, replace(lanes.clone(), generators=[])
        self.condition, self.noise = condition.clone(), noise.clone()
        self.rotary = self._rotary(lanes)
        self.replay = capture_graph(self._run_step) if noise.device.type == "cuda" else self._run_step

    def __call__(self, lanes: DreamState, condition: Tensor, noise: Tensor) -> DreamStep:
        """Move lanes on by one latent frame under a condition (b, c), with noise (b, n)."""
        self.lanes.copy_(lanes)
        self.condition.copy_(condition)
        self.noise.copy_(noise)
        self.rotary.copy_(self._rotary(lanes))
        self.replay()
        lanes.copy_(self.lanes)
        self.prior.finish_frame(lanes.kv_cache)
        return DreamStep(*(tensor.clone() for tensor in vars(self.output).values()))

    def _rotary(self, lanes: DreamState) -> Tensor:
        rotary = self.prior.rotary(lanes.kv_cache.time)
        assert rotary is not None, "time is relative in a dream"
        return rotary

    def _run_step(self) -> None:
        """What is recorded: a step from the buffers into the buffers."""
        lanes = replace(self.lanes, memory=dict(self.lanes.memory))
        lanes.kv_cache.n_cached = 0
        told = self.condition.to(self.prior.start_token.dtype)
        context = self.prior.step_context(lanes.kv_cache.time, 1, told[:, None], None)._replace(rotary=self.rotary)
        self.output = self.step_fn(lanes, context, self.condition, self.noise)
        self.lanes.copy_(lanes)


def capture_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record what work does on the GPU, after a few warm-ups aside; returns what does it again."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
