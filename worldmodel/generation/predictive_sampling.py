"""Sampling the codes of raster order several at a time, with the same result as one by one.

A code is sampled with the Gumbel-max trick: each code value has a random number, which is added to its logit, and the
greatest sum is selected. Once the random numbers are fixed, each code is a deterministic function of the codes before
it, and the frame is the unique fixed point of these functions.

A pass predicts a chunk of positions at once, from guesses of the codes before them. The first guesses are the codes of
the previous frame; later ones are the results of the previous pass. All codes up to and including the first one that
differs from its guess are final, because everything before them was right. The rest become better guesses. The result
equals that of one code per pass, up to the rounding of the logits (in bfloat16 about one code in a hundred may differ).
Codes that hardly depend on their neighbors, such as those of a static background, take few passes.

The fixed-point iteration is from Wiggers and Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models"
(2020). Sampling by inversion, as dreams do it, would give the same distribution. But its result changes with every
small change of the logits, so guesses would be right less often than with Gumbel-max.

Dimensions: b lanes, w positions of a chunk with m codes each, n positions of a frame, k code values.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.generation.sampling import SamplingConfig, sample_positions
from worldmodel.models.kv_cache import KVCache
from worldmodel.models.prior import Prior
from worldmodel.models.transformer import Block, StepContext


def predictive_sample(
    prior: Prior,
    cache: KVCache,
    context: StepContext,
    noise: Tensor,
    sampling: SamplingConfig,
    chunk_size: int,
    guess: Tensor | None = None,
) -> Tensor:
    """Sample all codes of the current frame, in chunks of positions. Call `Prior.finish_frame` afterwards.

    Args:
        prior: A prior with raster order.
        cache: Cache of the past frames; it receives the codes, keys and values of the current one.
        context: From `Prior.begin_frame`.
        noise: `gumbel_noise` (b, n*m, k).
        sampling: Temperature and truncation.
        chunk_size: Positions that one pass predicts.
        guess: First guess of the codes (b, 1, h, w, g), such as those of the previous frame. Without one, the codes in
            the cache are the first guess.

    Returns:
        Codes (b, 1, h, w, g).
    """
    n, m = len(prior.order), prior.config.codes_per_position
    noise, lanes = noise.unflatten(1, (n, m)), torch.arange(len(noise), device=noise.device)[:, None]
    if guess is not None:
        cache.codes.copy_(prior.group_codes(guess)[:, 0])
    chunk_size, n_final, kv = min(chunk_size, n), lanes.new_zeros(len(lanes)), ContiguousKV(cache)
    while int(n_final.min()) < n:
        # each lane's chunk starts at its first position that is not final; the last chunk is shifted back to fit
        at = n_final.clamp(max=n - chunk_size)[:, None] + torch.arange(chunk_size, device=n_final.device)
        guessed = cache.codes[lanes, at]
        features = chunk_features(prior, cache, kv, at, context)
        new = sample_positions(prior, features, partial(_choose, sampling, noise[lanes, at]))
        # final codes stay: a shifted chunk computes them once more, and bfloat16 may round their logits differently
        new = torch.where((at < n_final[:, None])[..., None], guessed, new)
        cache.codes[lanes, at] = new
        # Up to the first wrong guess all inputs were right, so its own new code is right as well. Later codes were
        # computed from a wrong input; they stay as guesses for the next pass.
        n_correct = (new == guessed).all(-1).cumprod(1).sum(1) + 1
        n_final = at[:, 0] + n_correct.clamp(max=chunk_size)
    kv.copy_to_cache(cache)
    return prior.ungroup_codes(cache.codes.clone()[:, None])


def _choose(sampling: SamplingConfig, noise: Tensor, logits: Tensor, k: int) -> Tensor:
    """Codes (b, w) of number k in their positions, for noise (b, w, m, k)."""
    return sampling.gumbel_max(logits, noise[:, :, k])


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of a shape, from the generator's uniform numbers."""
    # torch.rand can be exactly 0, whose logarithm is infinite
    return torch.rand(shape, generator=generator).clamp_min_(2**-25).log_().neg_().log_().neg_()


class ContiguousKV:
    """Contiguous copies of the keys and values of past frames and the current one, for the passes of one frame.

    The tensors of a cache are slices of a larger buffer. In bfloat16 every matrix product would first copy such a slice
    into contiguous memory. Here it is copied once for the whole frame.
    """

    def __init__(self, cache: KVCache) -> None:
        self.n_past = cache.n_used_slots * cache.positions_per_frame
        near = [pair.narrow(3, 0, self.n_past + cache.positions_per_frame) for pair in cache.kv]
        self.kv = [pair.movedim(2, 0).contiguous().movedim(0, 2) for pair in near]

    def write(self, layer: int, at: Tensor, kv: Tensor) -> Tensor:
        """Write keys and values (b, key heads, 2, w, d) of the positions `at` (b, w); returns all positions."""
        lanes = torch.arange(len(at), device=at.device)[:, None]
        self.kv[layer][lanes, :, :, self.n_past + at] = kv.permute(0, 3, 1, 2, 4)
        return self.kv[layer]

    def copy_to_cache(self, cache: KVCache) -> None:
        """Copy the keys and values of the complete frame to the cache."""
        for mine, theirs in zip(self.kv, cache.kv, strict=True):
            theirs.narrow(3, self.n_past, cache.positions_per_frame).copy_(mine[:, :, :, self.n_past :])


def chunk_features(prior: Prior, cache: KVCache, kv: ContiguousKV, at: Tensor, context: StepContext) -> Tensor:
    """One pass over a chunk of positions, which may be at a different place in each lane.

    Args:
        prior: A prior with raster order.
        cache: Holds the codes, guessed or final, that the positions take as input.
        kv: Receives the keys and values of the chunk.
        at: Indices of the positions (b, w).
        context: From `Prior.begin_frame`.

    Returns:
        Features (b, w, width). Each position attends to all positions before it.
    """
    x = torch.where(at[..., None] == 0, _start_input(prior, cache), _embed_parents(prior, cache, at - 1))
    embeddings = context.position_embeddings[..., 0, :, :].expand(len(at), -1, -1)
    x = (x + embeddings[torch.arange(len(at), device=at.device)[:, None], at])[:, None]
    mask = _chunk_mask(prior, cache, at, context.past_mask)
    for index, (layer, block) in enumerate(zip(context.blocks, prior.blocks, strict=True)):
        assert isinstance(block, Block)
        x = block.forward_pass(x, layer, context.rotary, partial(kv.write, index, at), mask)
    return prior.final_norm(x, context.final_modulation)[:, 0]


def _start_input(prior: Prior, cache: KVCache) -> Tensor:
    """Input of the first position of a frame, (b, 1, width) or (width,): the last code of the previous frame."""
    return prior.input_projections[0](cache.last_vectors) if cache.time else prior.start_token


def _embed_parents(prior: Prior, cache: KVCache, parents: Tensor) -> Tensor:
    """Input of the positions after `parents` (b, w): the embedded codes of the parents, (b, w, width)."""
    parents, m = parents.clamp(min=0), prior.config.codes_per_position
    lanes = torch.arange(len(parents), device=parents.device)[:, None]
    codebooks = (parents[..., None] * m + torch.arange(m, device=parents.device)) % prior.config.n_codebooks
    return prior.input_projections[0](prior.codebook[codebooks, cache.codes[lanes, parents]].flatten(2))


def _chunk_mask(prior: Prior, cache: KVCache, at: Tensor, past: Tensor | None) -> Tensor:
    """Additive mask (b, 1, w, keys) of a chunk over past frames and its own: 0 where it attends, else -inf.

    `past` is `StepContext.past_mask`.
    """
    n, old = cache.positions_per_frame, cache.n_used_slots * cache.positions_per_frame
    if prior.config.local_window:
        seen = prior.sparse_mask(cache, at, n)
    else:
        seen = torch.arange(old + n, device=at.device) <= old + at[..., None]
    if past is not None:
        seen = seen & F.pad(past, (0, n), value=True)[:, None]
    return torch.zeros_like(seen, dtype=cache.kv[0].dtype).masked_fill_(~seen, float("-inf"))[:, None]
