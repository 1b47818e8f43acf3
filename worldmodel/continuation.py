"""Continuing a video code frame by code frame, or beginning one: what samples are made by.

Orders of few passes draw by inversion, as dreams do (worldmodel/sampling.py). Raster order, which has a pass for each
position, draws runs of them ahead (worldmodel/ahead.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.ahead import draw_ahead, gumbel
from worldmodel.prior import Prior
from worldmodel.sampling import Sampling, draw_codes


def suited(lanes: int, dtype: torch.dtype) -> int:
    """The length of runs for so many lanes: a pass over it takes little longer than one over a single position."""
    return min(32, max(4, (128 if dtype == torch.float32 else 256) // lanes))


@torch.no_grad()
def continuation(
    prior: Prior,
    codes: Tensor,
    frames: int,
    generator: torch.Generator,
    condition: Tensor | None = None,
    features: Tensor | None = None,
    sampling: Sampling | None = None,
    run: int | None = None,
) -> Tensor:
    """Codes (b, frames, h, w, g) that begin with `codes` (b, t >= 0, h, w, g); the others are drawn one by one.

    The condition is (b, frames, c) or (b, c), as the prior has it; the numbers come from a generator of the CPU. In
    raster order `run` positions are worked out in a pass, as many as suit the batch if it is not given; with 1 they are
    drawn one by one, by inversion.
    """
    per_frame, given, sampling = prior.config.condition == "frame", codes.shape[1], sampling or Sampling()
    at = lambda t: condition[:, t] if per_frame and condition is not None else condition  # noqa: E731
    cache = prior.prefill(codes, at(slice(given)), features=features) if given else prior.empty(len(codes))
    run = run or suited(len(codes), prior.start.dtype)
    if run > 1:  # a cache for single codes may be in float32
        cache.pairs = [pair.to(prior.start.dtype) for pair in cache.pairs]
    for t in range(given, frames):
        shared = prior.begin(cache, at(t), features)
        if prior.config.order == "raster" and run > 1:
            noise = gumbel((len(codes), prior.config.frame, prior.config.codes), generator)
            guess = codes[:, -1:] if t else None
            new = draw_ahead(prior, cache, shared, noise.to(codes.device), sampling, run, guess)
        else:
            noise = torch.rand(len(codes), prior.config.frame, generator=generator)
            new = draw_codes(prior, cache, shared, noise.to(codes.device), sampling)
        prior.finish(cache)
        codes = torch.cat([codes, new], dim=1)
    return codes
