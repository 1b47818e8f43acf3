"""Vector quantisation: a feature vector becomes the nearest of K codes.

Codes follow the features by exponential moving averages instead of a codebook loss (section 2.1). They start as
copies of encoder outputs, and a code that has fallen out of use restarts as a copy
of some output of the current batch (section 4.1, after Jukebox). Three things differ from the official code:

* Whether the codebook has been initialised is a buffer, so a resumed run does not start its codes anew.
* A code is out of use when its average count per batch is below `restart`. The official code says 1, with 256 vectors a
  code in a batch (Table 8); with two a code, as on a small machine, that would restart half of them at every step.
* Several codebooks (Table 7) are one module with a leading axis, not a list of modules.

Dimensions: n vectors, g codebooks, k codes each, d channels each; features are (..., g*d), codes (..., g).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantised(NamedTuple):
    """What quantising gives."""

    features: Tensor
    """(..., g*d), the codes' vectors; gradients pass straight through to the input."""
    codes: Tensor
    """(..., g), int64."""
    commitment: Tensor
    """Scalar: mean squared distance of the input to its codes."""


class Codebook(nn.Module):
    """g codebooks of k codes of d channels."""

    embedding: Tensor
    count: Tensor
    total: Tensor
    initialised: Tensor

    def __init__(self, codes: int, dim: int, books: int = 1, decay: float = 0.99, restart: float = 1.0) -> None:
        super().__init__()
        self.codes, self.dim, self.books, self.decay, self.restart = codes, dim, books, decay, restart
        self.register_buffer("embedding", torch.randn(books, codes, dim))
        self.register_buffer("count", torch.zeros(books, codes))
        self.register_buffer("total", torch.zeros(books, codes, dim))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, features: Tensor) -> Quantised:
        """Quantise (..., g*d); in training also move the codes."""
        flat = features.to(self.embedding.dtype).reshape(-1, self.books, self.dim).transpose(0, 1)  # (g, n, d)
        if self.training and not self.initialised:
            self._initialise(flat.detach())
        codes = self._nearest(flat.detach())
        if self.training:
            self._follow(flat.detach(), codes)
        vectors = self.embed(codes.T.reshape(*features.shape[:-1], self.books)).to(features.dtype)
        commitment = F.mse_loss(features, vectors)
        return Quantised(
            features + (vectors - features).detach(), codes.T.reshape(*features.shape[:-1], -1), commitment
        )

    def embed(self, codes: Tensor) -> Tensor:
        """(..., g) -> (..., g*d)."""
        book = torch.arange(self.books, device=codes.device)
        return self.embedding[book, codes].flatten(-2)

    def _nearest(self, flat: Tensor) -> Tensor:
        """(g, n, d) -> (g, n)."""
        return self._distances(flat).argmin(-1)

    def _distances(self, flat: Tensor) -> Tensor:
        """(g, n, d) -> (g, n, k): |x - e|^2, without the term that is the same for all codes.

        Never in bfloat16, which would choose a quarter of the codes otherwise than encoding does.
        """
        with torch.autocast(flat.device.type, enabled=False):
            return torch.baddbmm(self.embedding.square().sum(-1)[:, None], flat, self.embedding.mT, alpha=-2)

    def steady(self, features: Tensor, hysteresis: float, before: Tensor | None = None) -> Tensor:
        """Codes (b, t, ..., g) of features (b, t, ..., g*d) in time, where a place is slow to leave its code.

        It keeps the code that it had a frame ago (`before`, (b, ..., g), for the first) unless another is nearer, in
        squared distance, by more than `hysteresis` times the spread of the codes.
        """
        b, t = features.shape[:2]
        flat = features.to(self.embedding.dtype).reshape(-1, self.books, self.dim).transpose(0, 1)
        distances = self._distances(flat).unflatten(1, (b, t, -1))  # (g, b, t, n, k)
        least, nearest = distances.min(-1)
        least, frames = least + hysteresis * self.spread()[:, None, None, None], []
        old = None if before is None else before.reshape(b, -1, self.books).movedim(-1, 0)
        for i in range(t):
            if old is None:
                old = nearest[:, :, i]
            else:
                kept = distances[:, :, i].gather(-1, old[..., None])[..., 0] <= least[:, :, i]
                old = torch.where(kept, old, nearest[:, :, i])
            frames.append(old)
        return torch.stack(frames, dim=2).movedim(0, -1).reshape(*features.shape[:-1], self.books)

    def spread(self) -> Tensor:
        """(g,) the mean squared distance of the codes, as often as they are used, from their mean."""
        share = (self.count / self.count.sum(-1, keepdim=True))[..., None]
        middle = (share * self.embedding).sum(1, keepdim=True)
        return (share * (self.embedding - middle).square()).sum((1, 2))

    def _initialise(self, flat: Tensor) -> None:
        self.embedding.copy_(self._draw(flat))
        self.total.copy_(self.embedding * self.restart)
        self.count.fill_(self.restart)  # a code that nobody wants goes at the next step
        self.initialised.fill_(True)

    def _follow(self, flat: Tensor, codes: Tensor) -> None:
        """Move the averages towards this batch; restart the codes that hardly any feature chose."""
        count = torch.zeros_like(self.count).scatter_add_(1, codes, torch.ones_like(codes, dtype=flat.dtype))
        total = torch.zeros_like(self.total).scatter_add_(1, codes[..., None].expand_as(flat), flat)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        smooth = (self.count + 1e-7) / (1 + self.codes * 1e-7 / self.count.sum(1, keepdim=True))  # Laplace
        used = (self.count >= self.restart)[..., None]
        self.embedding.copy_(torch.where(used, self.total / smooth[..., None], self._draw(flat)))

    def _draw(self, flat: Tensor) -> Tensor:
        """k random features for each book, (g, k, d); repeated with a little noise where there are too few."""
        n = flat.shape[1]
        if n < self.codes:
            repeats = -(-self.codes // n)
            noise = torch.randn(self.books, repeats * n, self.dim, device=flat.device) * (0.01 / self.dim**0.5)
            flat = flat.repeat(1, repeats, 1) + noise
        return flat[:, torch.randperm(flat.shape[1], device=flat.device)[: self.codes]]


def usage(codes: Tensor, size: int) -> dict[str, Tensor]:
    """Share of the codes that occur, and perplexity 2^entropy of their use; codes (..., g), mean over books."""
    counts = torch.stack([torch.bincount(book, minlength=size) for book in codes.reshape(-1, codes.shape[-1]).T])
    share = counts / counts.sum(1, keepdim=True)
    entropy = torch.special.entr(share).sum(1)
    return {"codes_used": (counts > 0).float().mean(), "perplexity": entropy.exp().mean()}
