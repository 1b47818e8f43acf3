"""The two paths of a small U-Net that an action modulates: a recurrent VQ-VAE's encoder and decoder are made of them.

Dimensions: b lanes, n channels of the pictures, h w space.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

ACTION_DIM = 64
"""Channels of an embedded action."""


class ResBlock(nn.Module):
    """x + conv(conv(x)), each after norm and SiLU; an action scales and shifts the second norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(ACTION_DIM, 2 * width)
        for parameter in (self.conv2.weight, self.film.weight, self.film.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        scale, shift = self.film(action.to(x.dtype))[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))


class DownPath(nn.Module):
    """Pictures (b, n, h, w) -> features at each size, from patches of pixels down to the size of the codes."""

    def __init__(self, n_channels: int, widths: list[int], patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.stem = nn.Conv2d(n_channels * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(ResBlock(width) for width in widths)

    def forward(self, pictures: Tensor, action: Tensor) -> list[Tensor]:
        x = self.blocks[0](self.stem(F.pixel_unshuffle(pictures, self.patch)), action)
        features = [x]
        for conv, block in zip(self.down, list(self.blocks)[1:], strict=True):
            features.append(block(conv(features[-1]), action))
        return features


class UpPath(nn.Module):
    """Features of all sizes -> numbers (b, n, h, w) for each pixel."""

    def __init__(self, n_channels: int, widths: list[int], patch: int) -> None:
        super().__init__()
        self.patch = patch
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairs)
        self.blocks = nn.ModuleList(ResBlock(a) for a, _ in pairs)
        self.norm, self.out = nn.GroupNorm(8, widths[0]), nn.Conv2d(widths[0], n_channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, skips: list[Tensor], action: Tensor) -> Tensor:
        for conv, block, skip in zip(self.up, self.blocks, reversed(skips), strict=True):
            x = block(conv(F.interpolate(x, scale_factor=2.0)) + skip, action)
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))), self.patch)
