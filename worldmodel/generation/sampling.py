"""Sampling the next latent frame from the prior, pass by pass, optionally with its log-likelihood.

Each code is sampled with one uniform random number, by inverting the cumulative distribution. The cumulative
distribution runs over the codes by index, not by probability. A lane's codes then depend only on the lane's own random
numbers (up to the rounding of its logits), not on the rest of the batch. Codes that never occurred in training have
equal logits up to rounding, so their order by probability would differ from batch to batch.

Dimensions: b lanes, n positions of a frame with m codes each, k code values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from worldmodel.models.kv_cache import KVCache
from worldmodel.models.layers import at_least_float32
from worldmodel.models.prior import Prior
from worldmodel.models.transformer import StepContext
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, NotNegative, Range, Settings


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """How codes are sampled. Reported likelihoods are the model's own, before any of these settings apply."""

    temperature: NotNegative = 1.0
    """Sampling temperature, which divides the logits; 0 always takes the most likely code."""
    top_k: Count = 0
    """Sample only among the k most likely codes; 0 keeps all."""
    top_p: Annotated[float, Range(0, 1, exclude_minimum=True)] = 1.0
    """Sample only among the most likely codes that together reach this probability; 1 keeps all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < 1e-6:
            raise UserError(f"temperature must be 0 or at least 1e-06, not {self.temperature}")

    def sample(self, logits: Tensor, noise: Tensor, probs: Tensor | None = None) -> Tensor:
        """Sample by inversion.

        Args:
            logits: (b, positions, k).
            noise: Uniform random numbers (b, positions) in [0, 1).
            probs: Softmax of the logits (b, positions, k), if the caller has it already.

        Returns:
            Codes (b, positions).
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        total = self._filtered_probs(logits, probs).cumsum(-1)
        # scaled by the total, because truncated probabilities do not sum to 1
        chosen = torch.searchsorted(total, noise[..., None].to(total.dtype) * total[..., -1:], right=True)
        return chosen.squeeze(-1).clamp(max=total.shape[-1] - 1)

    def gumbel_max(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Sample codes (...) from logits (..., k) and Gumbel noise (..., k): the argmax of their sum."""
        if self.temperature == 0:
            return logits.argmax(-1)
        if self.top_k or self.top_p < 1:
            logits = logits.masked_fill(self._filtered_probs(logits) == 0, float("-inf"))
        return noise.add(logits, alpha=1 / self.temperature).argmax(-1)

    def _filtered_probs(self, logits: Tensor, probs: Tensor | None = None) -> Tensor:
        """Unnormalized probabilities (..., k) after temperature, top_k and top_p."""
        if probs is None or self.temperature != 1:
            probs = (logits / self.temperature).softmax(-1)
        if self.top_k or self.top_p < 1:
            probs = probs.masked_fill(probs < self._min_kept_prob(probs), 0)
        return probs

    def _min_kept_prob(self, probs: Tensor) -> Tensor:
        """The smallest probability that is kept (b, positions, 1); codes of equal probability are kept or dropped
        together."""
        best = probs.sort(-1, descending=True).values
        keep = best.cumsum(-1) - best < self.top_p
        if self.top_k:
            keep[..., self.top_k :] = False
        return best.masked_fill(~keep, 1).amin(-1, keepdim=True)


class FrameScore:
    """Log-likelihood and entropy (b,) of a frame in nats, summed up while it is sampled."""

    def __init__(self, like: Tensor) -> None:
        self.log_likelihood, self.entropy = torch.zeros(2, len(like), device=like.device)

    def add(self, logits: Tensor, probs: Tensor, codes: Tensor) -> None:
        """Add codes (b, positions) that were sampled from logits with softmax `probs`, both (b, positions, k)."""
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
    """Sample all codes of the current frame, pass by pass. Call `Prior.finish_frame` afterwards.

    Args:
        prior: The model to sample from.
        cache: Cache of the past frames; it receives the codes, keys and values of the current one.
        context: From `Prior.begin_frame`.
        noise: Uniform random numbers (b, n*m) in [0, 1), one for each code.
        sampling: Temperature and truncation.
        score: If given, log-likelihood and entropy of the codes are added to it.

    Returns:
        Codes (b, 1, h, w, g).
    """
    noise = noise.view(-1, len(prior.order), prior.config.codes_per_position)
    for positions in prior.passes():

        def choose(logits: Tensor, k: int, positions: Tensor = positions) -> Tensor:
            probs = logits.softmax(-1)
            codes = sampling.sample(logits, noise[:, positions, k], probs)
            if score is not None:
                score.add(logits, probs, codes)
            return codes

        features = prior.forward_pass(cache, positions, context)
        cache.codes[:, positions] = sample_positions(prior, features, choose)
    return prior.ungroup_codes(cache.codes.clone()[:, None])


def sample_positions(prior: Prior, features: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Sample the m codes of each position, one after another: each is conditioned on those before it.

    Args:
        prior: The model whose head is used.
        features: (b, w, d_model) of w positions.
        choose: Picks codes (b, w) from their logits (b, w, k) and their number in the position.

    Returns:
        Codes (b, w, m).
    """
    hidden, codes, m = prior.head.split_hidden(features), [], prior.config.codes_per_position
    for k in range(m):
        logits = prior.head.logits(hidden)
        codes.append(choose(at_least_float32(logits), k))
        if k + 1 < m:
            hidden = prior.head.condition_on(hidden, prior.codebook[k % prior.config.n_codebooks, codes[-1]])
    return torch.stack(codes, -1)
