"""Sampling the next latent frame from the prior, pass by pass, with its likelihood where that is asked for.

Randomness comes in as uniform numbers, one for each code, and a code is drawn by inverting the distribution at
its number, codes being in the order of their numbers. A lane's codes thus depend on the lane's own numbers only (up to
the rounding of its logits), whatever else is in the batch: codes that were never seen have equal logits up to rounding,
and an order by probability would differ from batch to batch.

Dimensions: b lanes, n positions of a frame with m codes each, k code values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from worldmodel.models.attention import KVCache
from worldmodel.models.prior import Prior
from worldmodel.models.transformer import StepContext
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, NotNegative, Range, Settings


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """How codes are drawn. The likelihood that is reported is the model's own, before any of these."""

    temperature: NotNegative = 1.0
    """0 takes the most likely code."""
    top_k: Count = 0
    """Keep the k most likely codes; 0 keeps all."""
    top_p: Annotated[float, Range(0, 1, exclude_minimum=True)] = 1.0
    """Keep the most likely codes that together reach this probability."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < 1e-6:
            raise UserError(f"temperature must be 0 or at least 1e-06, not {self.temperature}")

    def sample(self, logits: Tensor, noise: Tensor, probs: Tensor | None = None) -> Tensor:
        """Codes (b, positions) from logits and, if at hand, their softmax (b, positions, k), and uniform numbers."""
        if self.temperature == 0:
            return logits.argmax(-1)
        total = self._filtered_probs(logits, probs).cumsum(-1)
        chosen = torch.searchsorted(total, noise[..., None].to(total.dtype) * total[..., -1:], right=True)
        return chosen.squeeze(-1).clamp(max=total.shape[-1] - 1)

    def gumbel_max(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Codes (...) from logits (..., k) and a Gumbel-distributed number for each
        (worldmodel/generation/predictive_sampling.py)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        if self.top_k or self.top_p < 1:
            logits = logits.masked_fill(self._filtered_probs(logits) == 0, float("-inf"))
        return noise.add(logits, alpha=1 / self.temperature).argmax(-1)

    def _filtered_probs(self, logits: Tensor, probs: Tensor | None = None) -> Tensor:
        """What codes are drawn in proportion to, from logits and, if at hand, their softmax (..., k)."""
        if probs is None or self.temperature != 1:
            probs = (logits / self.temperature).softmax(-1)
        if self.top_k or self.top_p < 1:
            probs = probs.masked_fill(probs < self._min_kept_prob(probs), 0)
        return probs

    def _min_kept_prob(self, probs: Tensor) -> Tensor:
        """(b, positions, 1) the smallest probability that is kept; codes of equal probability stay or go together."""
        best = probs.sort(-1, descending=True).values
        keep = best.cumsum(-1) - best < self.top_p
        if self.top_k:
            keep[..., self.top_k :] = False
        return best.masked_fill(~keep, 1).amin(-1, keepdim=True)


class FrameScore:
    """Log-likelihood and entropy (b,) of a frame in nats, added up while it is drawn."""

    def __init__(self, like: Tensor) -> None:
        self.log_likelihood, self.entropy = torch.zeros(2, len(like), device=like.device)

    def add(self, logits: Tensor, probs: Tensor, codes: Tensor) -> None:
        """Codes (b, positions) were drawn from logits and their softmax (b, positions, k)."""
        total = logits.logsumexp(-1)  # log p = logit - total
        self.log_likelihood = self.log_likelihood + (logits.gather(-1, codes[..., None])[..., 0] - total).sum(1)
        self.entropy = self.entropy + (total - torch.linalg.vecdot(probs, logits)).sum(1)


@torch.no_grad()
def sample_codes(
    prior: Prior,
    cache: KVCache,
    context: StepContext,
    noise: Tensor,
    sampling: SamplingConfig,
    score: FrameScore | None = None,
) -> Tensor:
    """Draw all codes of a frame that has begun; where a score is asked for, it is told.

    Noise (b, n*m) in [0, 1) -> codes (b, 1, h, w, g). `Prior.finish_frame` then moves the cache on.
    """
    n, m = len(prior.order), prior.config.codes_per_position
    noise = noise.view(-1, n, m)
    for positions in prior.passes():
        hidden = prior.head.split_hidden(prior.forward_pass(cache, positions, context))
        for k in range(m):
            logits = prior.head.logits(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            probs = logits.softmax(-1)
            codes = sampling.sample(logits, noise[:, positions, k], probs)
            cache.codes[:, positions, k] = codes
            if score is not None:
                score.add(logits, probs, codes)
            if k + 1 < m:
                hidden = prior.head.condition_on(hidden, prior.codebook[k % prior.config.n_codebooks, codes])
    return prior.ungroup_codes(cache.codes.clone()[:, None])
