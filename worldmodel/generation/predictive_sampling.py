"""Drawing the codes of a raster order several at a time, and yet exactly as one by one.

A code is drawn by a race (Gumbel's trick): each of its values has a number of its own, which is added to its logit, and
the greatest sum wins. With the numbers given, a code is a function of the codes before it, and a frame is the one fixed
point of these functions. So a pass works out a run of positions at once, from guesses of the codes before them: the
codes of the frame before, then whatever the last pass made of them. All codes up to the first that comes out other than
it was guessed are final, that one included, since everything before them was right; the rest are better guesses. The
result is that of one code a pass, up to the rounding of logits (in bfloat16 one code in a hundred may be another), and
codes that hardly depend on their neighbours, as where nothing moves, cost hardly any passes.

Iterating to a fixed point is from Wiggers and Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models"
(2020). Sampling by inversion, as dreams do it, would do for this too, but moves with every small change of the logits:
a race hardly does.

Dimensions: b lanes, w positions of a run with m codes each, n positions of a frame, k code values.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.generation.sampling import SamplingConfig
from worldmodel.models.attention import KVCache
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
    """Draw all codes of a frame that has begun, in runs of `chunk_size` positions.

    Noise (b, n*m, k) of `gumbel_noise` and a guess (b, 1, h, w, g), if there is one -> codes (b, 1, h, w, g).
    `Prior.finish_frame` then moves the cache on.
    """
    n, m = len(prior.order), prior.config.codes_per_position
    noise, lanes = noise.unflatten(1, (n, m)), torch.arange(len(noise), device=noise.device)[:, None]
    if guess is not None:
        cache.codes.copy_(prior.group_codes(guess)[:, 0])
    chunk_size, n_final, kv = min(chunk_size, n), lanes.new_zeros(len(lanes)), ContiguousKV(cache)
    while int(n_final.min()) < n:
        at = n_final.clamp(max=n - chunk_size)[:, None] + torch.arange(chunk_size, device=n_final.device)
        guessed = cache.codes[lanes, at]
        new = _sample_chunk(prior, chunk_features(prior, cache, kv, at, context), noise[lanes, at], sampling)
        new = torch.where((at < n_final[:, None])[..., None], guessed, new)
        cache.codes[lanes, at] = new
        n_correct = (new == guessed).all(-1).cumprod(1).sum(1) + 1  # of the run, unless all are
        n_final = at[:, 0] + n_correct.clamp(max=chunk_size)
    kv.copy_to_cache(cache)
    return prior.ungroup_codes(cache.codes.clone()[:, None])


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers for races, of uniform ones above 0."""
    return torch.rand(shape, generator=generator).clamp_min_(2**-25).log_().neg_().log_().neg_()


class ContiguousKV:
    """What the passes of a frame attend to: its own keys and values and those of past frames, without gaps.

    The ring of a cache has gaps, whose keys and values every product in bfloat16 would copy; here once a frame does.
    """

    def __init__(self, cache: KVCache) -> None:
        self.n_past = cache.n_used_slots * cache.positions_per_frame
        near = [pair.narrow(3, 0, self.n_past + cache.positions_per_frame) for pair in cache.kv]
        self.kv = [pair.movedim(2, 0).contiguous().movedim(0, 2) for pair in near]

    def write(self, layer: int, at: Tensor, kv: Tensor) -> Tensor:
        """Put the keys and values (b, a, 2, w, d) of a run of positions `at` (b, w) where they belong; returns all."""
        lanes = torch.arange(len(at), device=at.device)[:, None]
        self.kv[layer][lanes, :, :, self.n_past + at] = kv.permute(0, 3, 1, 2, 4)
        return self.kv[layer]

    def copy_to_cache(self, cache: KVCache) -> None:
        """The frame is complete: its keys and values go to the cache."""
        for mine, theirs in zip(self.kv, cache.kv, strict=True):
            theirs.narrow(3, self.n_past, cache.positions_per_frame).copy_(mine[:, :, :, self.n_past :])


def chunk_features(prior: Prior, cache: KVCache, kv: ContiguousKV, at: Tensor, context: StepContext) -> Tensor:
    """Features (b, w, width) of a run of positions `at` (b, w) in each lane, each of which sees all before it."""
    x = torch.where(at[..., None] == 0, _start_input(prior, cache), _embed_parents(prior, cache, at - 1))
    x = (x + context.position_embeddings[0, at])[:, None]
    mask = _chunk_mask(prior, cache, at, context.past_mask)
    for index, (layer, block) in enumerate(zip(context.blocks, prior.blocks, strict=True)):
        assert isinstance(block, Block)
        x = block.forward_pass(x, layer, context.rotary, partial(kv.write, index, at), mask)
    return prior.final_norm(x, context.final_modulation)[:, 0]


def _start_input(prior: Prior, cache: KVCache) -> Tensor:
    """What the first position of a frame is told, (b, 1, width) or (width,)."""
    return prior.input_projections[0](cache.last_vectors) if cache.time else prior.start_token


def _embed_parents(prior: Prior, cache: KVCache, parents: Tensor) -> Tensor:
    """What the codes at `parents` (b, w) tell the positions after them, (b, w, width)."""
    parents, m = parents.clamp(min=0), prior.config.codes_per_position
    lanes = torch.arange(len(parents), device=parents.device)[:, None]
    codebooks = (parents[..., None] * m + torch.arange(m, device=parents.device)) % prior.config.n_codebooks
    return prior.input_projections[0](prior.codebook[codebooks, cache.codes[lanes, parents]].flatten(2))


def _chunk_mask(prior: Prior, cache: KVCache, at: Tensor, past: Tensor | None) -> Tensor:
    """(b, 1, w, keys) what a run sees of past frames (`past` as in `StepContext`) and of its own: 0, or minus
    infinity."""
    n, old = cache.positions_per_frame, cache.n_used_slots * cache.positions_per_frame
    if prior.config.local_window:
        seen = prior.sparse_mask(cache, at, n)
    else:
        seen = torch.arange(old + n, device=at.device) <= old + at[..., None]
    if past is not None:
        seen = seen & F.pad(past, (0, n), value=True)[:, None]
    return torch.zeros_like(seen, dtype=cache.kv[0].dtype).masked_fill_(~seen, float("-inf"))[:, None]


def _sample_chunk(prior: Prior, x: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
    """Codes (b, w, m) by features (b, w, width) and noise (b, w, m, k)."""
    hidden, sampled, m = prior.head.split_hidden(x), [], prior.config.codes_per_position
    for k in range(m):
        logits = prior.head.logits(hidden)
        sampled.append(sampling.gumbel_max(logits.to(torch.promote_types(logits.dtype, torch.float32)), noise[:, :, k]))
        if k + 1 < m:
            hidden = prior.head.condition_on(hidden, prior.codebook[k % prior.config.n_codebooks, sampled[-1]])
    return torch.stack(sampled, -1)
