"""A 3D ResNet for conditioning frames (section 3, Table 9); the prior's cross-attention attends to its features.

Residual blocks as in He et al. (2015), with 3x3x3 convolutions and, as in the official code, LayerNorm. Depth is 18 or
34, and widths double from an eighth of `dim` (64 of the paper's 512) to `dim`. The paper says no more. The official
code has a stem at full resolution and a total spatial stride of 4, so a frame of 64 x 64 becomes 16 x 16 features, and
time is not strided.

Two changes keep the features of a small prior from becoming independent of the frame. The last norm of each block
starts at zero, so that a block starts as its shortcut (Goyal et al., 2017). And the stem has a bias, because a
LayerNorm right after a convolution without bias removes the brightness of the image.

Dimensions: b batch, f conditioning frames, c channels, h w space.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.convolution import Conv3d
from worldmodel.models.layers import AxialPositionEmbedding, ChannelNorm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Number of blocks in each of the four groups, by depth."""
MIN_CHANNELS = 16
"""Fewest channels of a layer: a LayerNorm over fewer channels loses most of the image."""
STRIDES = (1, 2, 2, 1)
"""Spatial stride of the first block of each group."""


def cubic_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = False) -> Conv3d:
    """A convolution with a cubic kernel, strided in space only; time keeps its length."""
    side = (kernel_size // 2, kernel_size // 2)
    return Conv3d(in_channels, out_channels, (kernel_size,) * 3, (1, stride, stride), (side, side, side), bias)


class ResNetBlock(nn.Module):
    """Two convolutions with norms, and a shortcut that is projected if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = cubic_conv(in_channels, out_channels, 3, stride), ChannelNorm(out_channels)
        self.conv2, self.norm2 = cubic_conv(out_channels, out_channels, 3), ChannelNorm(out_channels)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if (in_channels, stride) != (out_channels, 1):
            self.shortcut = nn.Sequential(cubic_conv(in_channels, out_channels, 1, stride), ChannelNorm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class ResNet(nn.Module):
    """Encodes frames (b, f, H, W, c) to features (b, f * H/4 * W/4, dim) with position embeddings."""

    def __init__(
        self, depth: int, n_frames: int, frame_shape: tuple[int, int, int], dim: int, init_std: float = 0.01
    ) -> None:
        super().__init__()
        widths = [max(MIN_CHANNELS, dim // part) for part in (8, 4, 2)] + [dim]
        inputs, blocks = widths[0], []
        self.stem = nn.Sequential(cubic_conv(frame_shape[2], inputs, 3, bias=True), ChannelNorm(inputs), nn.ReLU())
        for width, count, stride in zip(widths, BLOCKS[depth], STRIDES, strict=True):
            for i in range(count):
                blocks.append(ResNetBlock(inputs, width, stride if i == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.position_embedding = AxialPositionEmbedding(
            (n_frames, -(-frame_shape[0] // 4), -(-frame_shape[1] // 4)), dim, init_std
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (b, f, H, W, c), floats in [-0.5, 0.5]."""
        features = self.blocks(self.stem(frames.movedim(-1, 1))).movedim(1, -1)
        return (features + self.position_embedding().to(features.dtype)).flatten(1, 3)
