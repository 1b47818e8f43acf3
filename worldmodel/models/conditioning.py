"""Conditional norms: LayerNorm with gain and bias that are affine functions of a condition (section 3).

A condition belongs to a latent frame (its actions) or to the clip (all its actions, a class), never to a single code.
So gain and bias are computed once per frame and shared by its codes. Computed for each code they would take a third of
a step on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Modulation = tuple[Tensor, Tensor]
"""Bias and gain of a norm, each (b, t, 1, d)."""


class ConditionalNorm(nn.Module):
    """LayerNorm of (b, t, n, d) with conditional gain and bias; a plain LayerNorm if `condition_dim` is 0."""

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=condition_dim == 0)
        if condition_dim:
            self.affine = nn.Linear(condition_dim, 2 * dim)
            nn.init.normal_(self.affine.weight, std=0.02)
            nn.init.zeros_(self.affine.bias)

    def modulation(self, condition: Tensor | None) -> Modulation | None:
        """Bias and gain for a condition (b, t or 1, c)."""
        if condition is None:
            return None
        gain, bias = self.affine(condition)[:, :, None].chunk(2, dim=-1)
        return bias, 1 + gain

    def forward(self, x: Tensor, modulation: Modulation | None) -> Tensor:
        n = self.norm  # not called as a module: for a single code that overhead costs as much as the norm itself
        x = torch.layer_norm(x, n.normalized_shape, n.weight, n.bias, n.eps)
        return x if modulation is None else torch.addcmul(modulation[0], x, modulation[1])
