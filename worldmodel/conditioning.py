"""Conditional norms: a LayerNorm whose gain and bias are affine functions of a condition (section 3).

The condition belongs to a latent frame (its actions) or to the clip (all its actions, a class), never to a single
code, so gain and bias are computed once a frame and shared by the frame's codes; per code they would cost a third of
the step on a CPU.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConditionalNorm(nn.Module):
    """LayerNorm of (b, t, n, d) under a condition (b, t, c) or (b, 1, c); a plain LayerNorm where c is 0."""

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=condition_dim == 0)
        if condition_dim:
            self.affine = nn.Linear(condition_dim, 2 * dim)
            nn.init.normal_(self.affine.weight, std=0.02)
            nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            return self.norm(x)
        gain, bias = self.affine(condition)[:, :, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + gain) + bias
