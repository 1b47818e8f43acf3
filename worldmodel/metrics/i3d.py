"""I3D (Carreira and Zisserman, 2017): Inception-v1 with 3D convolutions. FVD is computed from its Kinetics-400 logits.

Only the architecture is here. A state dict that fits has the names of the layers of the published network:

    Conv3d_1a_7x7 .. Conv3d_2c_3x3 and Mixed_3b .. Mixed_5c, each with branches b0, b1a, b1b, b2a, b2b, b3b
    <unit>.conv3d.weight                                       (out, in, t, h, w), no bias
    <unit>.bn.weight, .bias, .running_mean, .running_var       batch norm
    logits.conv3d.weight, logits.conv3d.bias                   1 x 1 x 1, with a bias

which is how the paper's own code and most ports to PyTorch name them (a file `rgb_imagenet.pt` or
`i3d_pretrained_400.pt`). Padding is TensorFlow's "same": where it cannot be even, the end gets more. The epsilon of the
batch norm is not in the file, and sources differ: the paper's code has 1e-5, DeepMind's 1e-3.

The last pool averages over all of space, so that other sizes run too. At 224 pixels it is the published 7 x 7 pool.

Dimensions: b clips, c channels, t h w time and space, k classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]

MIXED: dict[str, tuple[int, ...]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of the branches b0, b1a, b1b, b2a, b2b, b3b; the last ones of each branch are concatenated."""
POOLS: dict[str, tuple[Triple, Triple]] = {
    "Conv3d_1a_7x7": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2c_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3c": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4f": ((2, 2, 2), (2, 2, 2)),
}
"""Kernel and stride of the max pool after a layer."""


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis for ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Pad (b, c, t, h, w) with zeros, as TensorFlow's "same"."""
    sides = [same(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [side for pair in reversed(sides) for side in pair])


def pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pool with "same" padding; after a ReLU no maximum is below the zeros."""
    return F.max_pool3d(pad(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU. The network's last unit is only a convolution, with a bias."""

    def __init__(
        self, channels: tuple[int, int], kernel: int = 1, stride: int = 1, epsilon: float | None = None
    ) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(*channels, kernel, stride, bias=epsilon is None)
        self.bn = None if epsilon is None else nn.BatchNorm3d(channels[1], eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    """Four parallel branches of convolutions, by kernel size: 1; 1 then 3; 1 then 3; a max pool, then 1."""

    def __init__(self, channels: int, widths: tuple[int, ...], epsilon: float) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit((channels, b0), epsilon=epsilon)
        self.b1a, self.b1b = Unit((channels, b1a), epsilon=epsilon), Unit((b1a, b1b), 3, epsilon=epsilon)
        self.b2a, self.b2b = Unit((channels, b2a), epsilon=epsilon), Unit((b2a, b2b), 3, epsilon=epsilon)
        self.b3b = Unit((channels, b3b), epsilon=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """Clips (b, 3, t, h, w) in [-1, 1] -> logits (b, k), averaged over time; t at least 9, published for 224 x 224."""

    def __init__(self, classes: int = 400, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit((3, 64), 7, 2, epsilon)
        self.Conv3d_2b_1x1 = Unit((64, 64), epsilon=epsilon)
        self.Conv3d_2c_3x3 = Unit((64, 192), 3, epsilon=epsilon)
        channels = 192
        for name, widths in MIXED.items():
            self.add_module(name, Mixed(channels, widths, epsilon))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = Unit((channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name == "logits":
                break
            x = layer(x)
            if name in POOLS:
                x = pool(x, *POOLS[name])
        x = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
        return self.logits(x).mean((2, 3, 4))
