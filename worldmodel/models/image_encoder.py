"""A small CNN that turns images into a grid of features, one vector for each position of a frame's codes.

The codes of a recurrent VQ-VAE describe what changes, not what is there. So the models that read these codes also get
the reconstructions (after delta-IRIS, Micheli et al. 2024, whose transformer takes features of the last frame as
input). Each position gets the features of its own part of the image and of what is around it.

Dimensions: b batch, t images, H W and c of an image, h w of the grid, d features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.pixels import to_float


class ImageEncoder(nn.Module):
    """Convolutions that halve the image as long as it is at least twice the grid, doubling the channels.

    The first one takes patches of up to 4 x 4 pixels: on a CPU, a convolution of three channels is slow.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], grid: tuple[int, int], dim: int, base: int = 32, noise: float = 0.0
    ) -> None:
        """Build the encoder.

        Args:
            channels: Channels of an image.
            size: Height and width of an image.
            grid: Rows and columns of the features.
            dim: Channels of the features.
            base: Channels at half of the image's size, twice as many as at its full size.
            noise: In training, each clip gets white noise whose standard deviation is uniform from 0 to this.
        """
        super().__init__()
        self.noise = noise
        halvings = min(n // m for n, m in zip(size, grid, strict=True)).bit_length() - 1
        self.grid, self.patch = grid, 2 ** min(halvings, 2)
        width = base * self.patch // 2
        layers: list[nn.Module] = [nn.Conv2d(channels * self.patch**2, width, 3, padding=1)]
        for _ in range(halvings - 2):
            layers += [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 2 * width, 2, 2)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (b, t, H, W, c) -> (b, t, h, w, d)."""
        floats = to_float(images, next(self.parameters()).dtype)
        if self.training and self.noise:
            std = self.noise * torch.rand(len(images), 1, 1, 1, 1, device=images.device)
            floats = floats + std * torch.randn_like(floats)
        x = floats.flatten(0, 1).movedim(-1, 1)
        x = F.adaptive_avg_pool2d(self.layers(F.pixel_unshuffle(x, self.patch)), self.grid)
        return x.movedim(1, -1).unflatten(0, images.shape[:2])
