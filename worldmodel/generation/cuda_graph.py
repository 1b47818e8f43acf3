"""A step of a batch of dreams as one CUDA graph: one launch instead of a thousand.

A step of a small model is a thousand kernels of a few microseconds each, and Python takes longer to launch a kernel
than the GPU takes to run it. Once the ring buffer of cached frames is full in every lane, each step runs the same
kernels on the same shapes, so the step is recorded once and then replayed.

Everything that changes from step to step goes through fixed buffers: the lanes' state (in and out), their actions, and
the rotary embedding of the frame's time. Time is a Python number, which a graph would otherwise repeat at every replay.
The finished frame is moved to its slot of the ring buffer outside the graph.

Lanes are copied into the buffers and out of them, so snapshots, forks and other lanes never share memory with the
graph. This copies the caches once, which a step reads in every pass anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.generation.dream_state import DreamState, DreamStep
from worldmodel.models.prior import Prior
from worldmodel.models.transformer import StepContext

StepFn = Callable[[DreamState, StepContext, Tensor], DreamStep]
"""Predicts a step between `Prior.begin_frame` and `Prior.finish_frame`: `Dream.predict_step`."""


FeaturesFn = Callable[[DreamState], Tensor | None]
"""Features of the last images for the prior: `Dream.image_features`."""


class CudaGraphStep:
    """The step of a dream for a fixed number of lanes whose ring buffer is full."""

    def __init__(
        self,
        step_fn: StepFn,
        features_fn: FeaturesFn,
        prior: Prior,
        lanes: DreamState,
        condition: Tensor,
    ) -> None:
        """Record the step.

        Args:
            step_fn: What to record.
            features_fn: What to record before it.
            prior: The dream's prior.
            lanes: Example state; the graph takes its shapes from here and works on a copy.
            condition: Example encoded actions (b, c).
        """
        self.step_fn, self.features_fn, self.prior = step_fn, features_fn, prior
        self.lanes, self.condition = lanes.clone(), condition.clone()
        self.rotary = self._rotary(lanes)
        self.replay = (
            capture_graph(self._run_step, condition.device) if condition.device.type == "cuda" else self._run_step
        )

    def __call__(self, lanes: DreamState, condition: Tensor) -> DreamStep:
        """Advance `lanes` in place by one latent frame.

        Args:
            lanes: As many lanes as the graph was recorded for.
            condition: Encoded actions (b, c).
        """
        self.lanes.copy_(lanes)
        self.condition.copy_(condition)
        self.rotary.copy_(self._rotary(lanes))
        self.replay()
        lanes.copy_(self.lanes)
        self.prior.finish_frame(lanes.kv_cache)
        return DreamStep(*(tensor.clone() for tensor in vars(self.output).values()))

    def _rotary(self, lanes: DreamState) -> Tensor:
        rotary = self.prior.rotary(lanes.kv_cache.time)
        assert rotary is not None, "a dream's prior has relative time"
        return rotary

    def _run_step(self) -> None:
        """The recorded step: reads its inputs from the buffers and writes its results back to them."""
        lanes = replace(self.lanes, memory=dict(self.lanes.memory))
        lanes.kv_cache.n_cached = 0
        condition = self.condition.to(self.prior.start_token.dtype)
        context = self.prior.step_context(lanes.kv_cache.time, 1, condition[:, None], self.features_fn(lanes))
        # from the buffer: a graph would replay the time at which it was recorded
        context = context._replace(rotary=self.rotary)
        self.output = self.step_fn(lanes, context, self.condition)
        self.lanes.copy_(lanes)


def capture_graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what `step` does on a GPU, after three warm-up calls on a side stream of that GPU.

    Returns:
        A function that replays it.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay
