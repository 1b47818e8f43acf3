"""Conditional norms: a LayerNorm whose gain and bias are affine functions of a condition (section 3).

The condition belongs to a latent frame (its actions) or to the clip (all its actions, a class), never to a single
code, so gain and bias are computed once a frame and shared by the frame's codes; per code they would cost a third of
the step on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Modulation = tuple[Tensor, Tensor]
"""Bias and gain (b, t, 1, d) of a norm."""


class ConditionalNorm(nn.Module):
    """LayerNorm of (b, t, n, d) under a condition; a plain LayerNorm where there is none.

    `modulation` turns the condition (b, t, c) or (b, 1, c) into bias and gain, once for all codes of a frame.
    """

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=condition_dim == 0)
        if condition_dim:
            self.affine = nn.Linear(condition_dim, 2 * dim)
            nn.init.normal_(self.affine.weight, std=0.02)
            nn.init.zeros_(self.affine.bias)

    def modulation(self, condition: Tensor | None) -> Modulation | None:
        if condition is None:
            return None
        gain, bias = self.affine(condition)[:, :, None].chunk(2, dim=-1)
        return bias, 1 + gain

    def forward(self, x: Tensor, modulation: Modulation | None) -> Tensor:
        n = self.norm  # called by its function: the module's own call costs as much as the norm of a single code
        x = torch.layer_norm(x, n.normalized_shape, n.weight, n.bias, n.eps)
        return x if modulation is None else torch.addcmul(modulation[0], x, modulation[1])
