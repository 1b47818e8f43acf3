"""Continuing a video code frame by code frame, or beginning one: what samples are made by.

Orders of few passes draw by inversion, as dreams do (worldmodel/generation/sampling.py). Raster order, which has a pass
for each position, draws runs of them ahead (worldmodel/generation/predictive_sampling.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.generation.predictive_sampling import gumbel_noise, predictive_sample
from worldmodel.generation.sampling import SamplingConfig, sample_codes
from worldmodel.models.prior import Prior


def default_chunk_size(lanes: int, dtype: torch.dtype) -> int:
    """The length of runs for so many lanes: a pass over it takes little longer than one over a single position."""
    return min(32, max(4, (128 if dtype == torch.float32 else 256) // lanes))


@torch.no_grad()
def generate(
    prior: Prior,
    codes: Tensor,
    n_frames: int,
    generator: torch.Generator,
    condition: Tensor | None = None,
    features: Tensor | None = None,
    sampling: SamplingConfig | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Codes (b, frames, h, w, g) that begin with `codes` (b, t >= 0, h, w, g); the others are drawn one by one.

    The condition is (b, frames, c) or (b, c), as the prior has it; the numbers come from a generator of the CPU. In
    raster order `chunk_size` positions are worked out in a pass, as many as suit the batch if it is not given; with 1
    they are drawn one by one, by inversion.
    """
    per_frame, n_given, sampling = prior.config.conditioning == "frame", codes.shape[1], sampling or SamplingConfig()
    at = lambda t: condition[:, t] if per_frame and condition is not None else condition  # noqa: E731
    cache = prior.prefill(codes, at(slice(n_given)), features=features) if n_given else prior.empty_cache(len(codes))
    chunk_size = chunk_size or default_chunk_size(len(codes), prior.start_token.dtype)
    if chunk_size > 1:  # a cache for single codes may be in float32
        cache.kv = [pair.to(prior.start_token.dtype) for pair in cache.kv]
    for t in range(n_given, n_frames):
        context = prior.begin_frame(cache, at(t), features)
        if prior.config.decoding_order == "raster" and chunk_size > 1:
            noise = gumbel_noise((len(codes), prior.config.codes_per_frame, prior.config.n_codes), generator)
            guess = codes[:, -1:] if t else None
            new = predictive_sample(prior, cache, context, noise.to(codes.device), sampling, chunk_size, guess)
        else:
            noise = torch.rand(len(codes), prior.config.codes_per_frame, generator=generator)
            new = sample_codes(prior, cache, context, noise.to(codes.device), sampling)
        prior.finish_frame(cache)
        codes = torch.cat([codes, new], dim=1)
    return codes
