"""Vector quantization: a feature vector is replaced by the nearest of K codes.

Codes follow the features by exponential moving averages instead of a codebook loss (section 2.1). They start as copies
of encoder outputs, and an unused code is reset to some output of the current batch (section 4.1, after Jukebox). Three
things differ from the official code:

* A buffer records whether the codebook is initialized, so a resumed run keeps its codes.
* A code is unused if its average count per batch is below `code_reset_threshold`. The official code has 1, with 256
  vectors per code in a batch (Table 8). With two vectors per code, as on a small machine, that would reset half of the
  codes at every step.
* Several codebooks (Table 7) are one module with a leading axis, not a list of modules.

The codebook follows the whole batch of a training step, however that is split over ranks and parts (utils/ranks.py).

Dimensions: n vectors, g codebooks, k codes each, d channels each; features are (..., g*d), codes (..., g).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.utils.ranks import (
    batch_sum,
    decide_once,
    from_first_rank,
    ranks_of_step,
    select_over_ranks,
    sum_over_ranks,
)

RARE = 1e-3
"""About the share of the probability that `bits_by_frequency` spreads over all codes."""


class QuantizerOutput(NamedTuple):
    """The result of quantization."""

    quantized: Tensor
    """(..., g*d) vectors of the codes; gradients pass straight through to the input."""
    codes: Tensor
    """(..., g) int64."""
    commitment_loss: Tensor
    """Scalar: mean squared distance of the input from its codes."""


class Quantizer(nn.Module):
    """g codebooks of k codes of d channels."""

    embedding: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialized: Tensor

    def __init__(
        self,
        n_codes: int,
        embedding_dim: int,
        n_codebooks: int = 1,
        decay: float = 0.99,
        code_reset_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        self.n_codes, self.embedding_dim, self.n_codebooks = n_codes, embedding_dim, n_codebooks
        self.decay, self.code_reset_threshold = decay, code_reset_threshold
        self.register_buffer("embedding", torch.randn(n_codebooks, n_codes, embedding_dim))
        self.register_buffer("ema_count", torch.zeros(n_codebooks, n_codes))
        self.register_buffer("ema_sum", torch.zeros(n_codebooks, n_codes, embedding_dim))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Quantize features (..., g*d); in training the codes are updated as well."""
        # (g, n, d)
        flat = features.to(self.embedding.dtype).reshape(-1, self.n_codebooks, self.embedding_dim).transpose(0, 1)
        if self.training:
            decide_once(self.embedding, lambda: self._initialize(flat.detach()))
        codes = self._nearest(flat.detach())
        if self.training:
            decide_once(self.embedding, lambda: self._update_ema(flat.detach(), codes))
        vectors = self.embed(codes.T.reshape(*features.shape[:-1], self.n_codebooks)).to(features.dtype)
        commitment = F.mse_loss(features, vectors)
        return QuantizerOutput(
            features + (vectors - features).detach(), codes.T.reshape(*features.shape[:-1], -1), commitment
        )

    def embed(self, codes: Tensor) -> Tensor:
        """Look up the vectors of codes: (..., g) -> (..., g*d)."""
        codebook = torch.arange(self.n_codebooks, device=codes.device)
        return self.embedding[codebook, codes].flatten(-2)

    def _nearest(self, flat: Tensor) -> Tensor:
        """(g, n, d) -> (g, n)."""
        return self._distances(flat).argmin(-1)

    def _distances(self, flat: Tensor) -> Tensor:
        """(g, n, d) -> (g, n, k): |x - e|^2, without the term |x|^2, which is the same for all codes.

        Never in bfloat16: training would then choose another code than encoding for a quarter of the vectors.
        """
        with torch.autocast(flat.device.type, enabled=False):
            return torch.baddbmm(self.embedding.square().sum(-1)[:, None], flat, self.embedding.mT, alpha=-2)

    def quantize_with_hysteresis(self, features: Tensor, hysteresis: float, previous: Tensor | None = None) -> Tensor:
        """Quantize frame by frame; a position keeps its code of the previous frame unless another one is much closer.

        Args:
            features: (b, t, ..., g*d).
            hysteresis: By how much another code must be closer, in squared distance, as a fraction of `code_variance`.
            previous: Codes of the frame before the first one (b, ..., g), if there is one.

        Returns:
            Codes (b, t, ..., g).
        """
        b, t = features.shape[:2]
        flat = features.to(self.embedding.dtype).reshape(-1, self.n_codebooks, self.embedding_dim).transpose(0, 1)
        distances = self._distances(flat).unflatten(1, (b, t, -1))  # (g, b, t, n, k)
        threshold, nearest = distances.min(-1)
        threshold, frames = threshold + hysteresis * self.code_variance()[:, None, None, None], []
        current = None if previous is None else previous.reshape(b, -1, self.n_codebooks).movedim(-1, 0)
        for i in range(t):
            if current is None:
                current = nearest[:, :, i]
            else:
                kept = distances[:, :, i].gather(-1, current[..., None])[..., 0] <= threshold[:, :, i]
                current = torch.where(kept, current, nearest[:, :, i])
            frames.append(current)
        return torch.stack(frames, dim=2).movedim(0, -1).reshape(*features.shape[:-1], self.n_codebooks)

    def code_variance(self) -> Tensor:
        """(g,) variance of the codes: mean squared distance from their mean, weighted by how often they are used."""
        weight = (self.ema_count / self.ema_count.sum(-1, keepdim=True))[..., None]
        mean = (weight * self.embedding).sum(1, keepdim=True)
        return (weight * (self.embedding - mean).square()).sum((1, 2))

    def bits_by_frequency(self, codes: Tensor) -> Tensor:
        """(..., g) -log2 of how often training used each code lately; a code that it did not use counts as rare."""
        count = self.ema_count + self.ema_count.sum(-1, keepdim=True) * RARE / self.n_codes
        share = count / count.sum(-1, keepdim=True)
        return -share[torch.arange(self.n_codebooks, device=codes.device), codes].log2()

    def _initialize(self, flat: Tensor) -> None:
        """Make the codes copies of features, unless they are in use already."""
        if self.initialized:
            return
        self.embedding.copy_(self._random_features(flat))
        self.ema_sum.copy_(self.embedding * self.code_reset_threshold)
        self.ema_count.fill_(self.code_reset_threshold)  # a code that is not used is reset at the next step
        self.initialized.fill_(True)

    def _update_ema(self, flat: Tensor, codes: Tensor) -> None:
        """Update the moving averages with a batch, and reset unused codes."""
        count = torch.zeros_like(self.ema_count).scatter_add_(1, codes, torch.ones_like(codes, dtype=flat.dtype))
        total = torch.zeros_like(self.ema_sum).scatter_add_(1, codes[..., None].expand_as(flat), flat)
        self.ema_count.lerp_(sum_over_ranks(count), 1 - self.decay)
        self.ema_sum.lerp_(sum_over_ranks(total), 1 - self.decay)
        smooth = (self.ema_count + 1e-7) / (1 + self.n_codes * 1e-7 / self.ema_count.sum(1, keepdim=True))  # Laplace
        used = (self.ema_count >= self.code_reset_threshold)[..., None]
        self.embedding.copy_(torch.where(used, self.ema_sum / smooth[..., None], self._random_features(flat)))

    def _random_features(self, flat: Tensor) -> Tensor:
        """k random features for each codebook, (g, k, d); repeated with a little noise if there are too few."""
        n, noise = flat.shape[1] * ranks_of_step(), None
        repeats = -(-self.n_codes // n)
        if repeats > 1:
            noise = torch.randn(self.n_codebooks, repeats * n, self.embedding_dim, device=flat.device) * (
                0.01 / self.embedding_dim**0.5
            )
        chosen = from_first_rank(torch.randperm(repeats * n, device=flat.device)[: self.n_codes])
        features = select_over_ranks(flat, chosen % n)
        return features if noise is None else features + from_first_rank(noise[:, chosen])


def codebook_usage(codes: Tensor, n_codes: int) -> dict[str, Tensor]:
    """Codebook usage of codes (..., g), in a training step of the whole batch's codes, averaged over codebooks.

    Returns:
        "codes_used", the fraction of codes that occur, and "perplexity", the exponential of the entropy of their use.
    """
    counts = torch.stack([torch.bincount(book, minlength=n_codes) for book in codes.reshape(-1, codes.shape[-1]).T])
    counts = batch_sum(counts)
    share = counts / counts.sum(1, keepdim=True)
    entropy = torch.special.entr(share).sum(1)
    return {"codes_used": (counts > 0).float().mean(), "perplexity": entropy.exp().mean()}
