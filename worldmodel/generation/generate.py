"""Generating a video latent frame by latent frame, from nothing or from given frames.

Decoding orders with few passes sample by inversion, as dreams do (worldmodel/generation/sampling.py). Raster order
needs one pass for each position, so it uses predictive sampling (worldmodel/generation/predictive_sampling.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.generation.predictive_sampling import gumbel_noise, predictive_sample
from worldmodel.generation.sampling import SamplingConfig, sample_codes
from worldmodel.models.prior import Prior


def default_chunk_size(lanes: int, dtype: torch.dtype) -> int:
    """A chunk size for a number of lanes: a pass over the chunk takes little longer than one over a single position."""
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
    """Continue `codes` up to `n_frames` latent frames.

    Args:
        prior: The model to sample from.
        codes: Given codes (b, t, h, w, g); t = 0 starts a video from nothing.
        n_frames: Latent frames of the result, the given ones included.
        generator: A CPU generator.
        condition: (b, n_frames, c) for a prior conditioned frame by frame, (b, c) for one conditioned on the clip.
        features: `Prior.encode_cond_frames` of the conditioning frames, if the prior has any.
        sampling: Temperature and truncation; by default the model's own distribution.
        chunk_size: Raster order only: positions that predictive sampling predicts in one pass, by default
            `default_chunk_size`. With 1 the codes are sampled one by one, by inversion.

    Returns:
        Codes (b, n_frames, h, w, g), the given ones first.

    Raises:
        UserError: If codes, condition or features do not fit the prior, or a paper-mode prior cannot reach `n_frames`.
    """
    per_frame, n_given, sampling = prior.config.conditioning == "frame", codes.shape[1], sampling or SamplingConfig()
    at = lambda t: condition[:, t] if per_frame and condition is not None else condition  # noqa: E731
    cache = prior.prefill(codes, at(slice(n_given)), features=features) if n_given else prior.empty_cache(len(codes))
    chunk_size = chunk_size or default_chunk_size(len(codes), prior.start_token.dtype)
    if chunk_size > 1:  # `empty_cache` may choose float32, which is faster only for one code a pass
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
