"""Layers of the VQ-VAE: convolutions, norms and axial attention that can also run frame by frame.

Each temporal layer has two modes. In paper mode it takes the whole clip. In causal mode, for streaming, frame t depends
only on a finite number of frames up to t. The past before the first frame is zeros. Between calls a causal layer
keeps its past activations in a `Memory`, keyed by the layer. A clip in one call and the same clip frame by frame thus
go through the same code and give the same result.

Dimensions: b batch, c channels, t h w time and space, n heads, s a stride, k a kernel.
Convolutions are (b, c, t, h, w), attention is (b, t, h, w, c).
"""

from __future__ import annotations

from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

from worldmodel.models.attention import attend
from worldmodel.models.convolution import Conv3d

Memory = dict[nn.Module, Tensor]
"""What layers keep from call to call, batch first: past activations, the last codes (with hysteresis), or the pictures
of a recurrent VQ-VAE. Empty at the start. With None the past of every call is zeros."""


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, unless it is more precise already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def prepend_past(layer: nn.Module, x: Tensor, n_past: int, memory: Memory | None) -> Tensor:
    """Put the past frames of a layer in front of its input.

    Args:
        layer: Key in the memory.
        x: (b, c, t, ...).
        n_past: Number of past frames.
        memory: Past activations, updated with the last frames of x.

    Returns:
        (b, c, n_past + t, ...).
    """
    if n_past == 0:
        return x
    before = memory.get(layer) if memory is not None else None
    if before is None:
        before = x.new_zeros(x.shape[0], x.shape[1], n_past, *x.shape[3:])
    x = torch.cat([before, x], dim=2)
    if memory is not None:
        memory[layer] = x[:, :, -n_past:]
    return x


def precede(layer: nn.Module, x: Tensor, past: int, memory: Memory | None) -> tuple[Tensor, int]:
    """`prepend_past` for convolutions, which pad zeros themselves.

    Returns:
        The input with past frames in front if there are any, and the number of zero frames to pad.
    """
    if memory is None:
        return x, past
    first = layer not in memory
    longer = prepend_past(layer, x, past, memory)
    return (x, past) if first else (longer, 0)


class Conv(nn.Module):
    """Strided 3D convolution. Output sizes are input sizes over the stride, for any stride and kernel (t, h, w)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1, 1),
        causal: bool = False,
    ) -> None:
        super().__init__()
        kernels = [max(k, s) for k, s in zip(kernel_size, stride, strict=True)]
        zeros = [k - s for k, s in zip(kernels, stride, strict=True)]
        self.n_past = zeros[0] if causal else 0
        if causal:
            zeros[0] = 0
        height, width = ((n - n // 2, n // 2) for n in zeros[1:])
        pads = ((zeros[0] - zeros[0] // 2, zeros[0] // 2), height, width)
        self.conv = Conv3d(in_channels, out_channels, tuple(kernels), stride, pads)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.conv(*precede(self, x, self.n_past, memory))


class ConvTranspose(nn.Module):
    """Upsampling convolution with kernel 2s along an axis of stride s (Table 8: 4), and `unstrided_kernel` if s is 1.

    A transposed convolution with stride s is an ordinary convolution that computes s neighboring outputs for each input
    position; with kernel 2s each output depends on two inputs. It is implemented that way because streaming needs only
    the outputs of the newest inputs; PyTorch's transposed convolution would compute more, which would be cut off. The
    function, its parameters, the receptive field and the speed on a CPU are the same.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, ...],
        causal: bool = False,
        unstrided_kernel: tuple[int, ...] = (3, 3, 3),
    ) -> None:
        super().__init__()
        self.stride = stride
        taps = [2 if s > 1 else k for s, k in zip(stride, unstrided_kernel, strict=True)]
        self.n_past = taps[0] - 1 if causal else 0
        time, height, width = (0 if k == 1 or (causal and axis == 0) else 1 for axis, k in enumerate(taps))
        self.crop = [s // 2 if s > 1 else 0 for s in stride]
        if causal:
            self.crop[0] = 0
        pads = ((time, time), (height, height), (width, width))
        self.conv = Conv3d(in_channels, out_channels * prod(stride), tuple(taps), pads=pads)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        sizes = [n * s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        y = self.conv(*precede(self, x, self.n_past, memory))
        a, b, c = self.stride
        y = rearrange(y, "n (o a b c) t h w -> n o (t a) (h b) (w c)", a=a, b=b, c=c)
        for axis, (start, size) in enumerate(zip(self.crop, sizes, strict=True)):
            y = y.narrow(axis + 2, start, size)
        return y


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (b, c, t, h, w), as in the paper (Figure 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class AxialPositionEmbedding(nn.Module):
    """Learned position embeddings: each axis has separate ones, which are concatenated along the channels.

    The official code splits the channels into equal parts and fails if they cannot be divided; here the first axes get
    the remainder.
    """

    def __init__(self, sizes: tuple[int, ...], dim: int, init_std: float = 0.01) -> None:
        """Build the embeddings.

        Args:
            sizes: Length of each axis.
            dim: Channels of all axes together.
            init_std: Standard deviation of the embeddings before training.
        """
        super().__init__()
        parts = [dim // len(sizes) + (i < dim % len(sizes)) for i in range(len(sizes))]
        axes = [torch.randn(n, p) * init_std for n, p in zip(sizes, parts, strict=True)]
        self.axes = nn.ParameterList(nn.Parameter(axis) for axis in axes)

    def forward(self) -> Tensor:
        """(*sizes, dim)."""
        sizes = [len(axis) for axis in self.axes]
        expanded = []
        for i, axis in enumerate(self.axes):
            shape = [1] * len(sizes)
            shape[i] = sizes[i]
            expanded.append(axis.view(*shape, -1).expand(*sizes, -1))
        return torch.cat(expanded, dim=-1)


class AxisAttention(nn.Module):
    """Self-attention along one axis of (b, t, h, w, c); the other axes are batch axes.

    With a window the axis is time and attention is causal: a frame attends to itself and the window - 1 frames before
    it, with a learned bias for each distance. Unlike absolute positions, distances work for videos of any length.
    """

    def __init__(self, channels: int, n_heads: int, axis: int, window: int = 0) -> None:
        super().__init__()
        self.n_heads, self.axis, self.window = n_heads, axis, window
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        if window:
            self.relative_bias = nn.Parameter(torch.zeros(n_heads, window))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        x = x.movedim(self.axis, -2)  # (b, ., ., length, c)
        q, k, v = rearrange(self.qkv(x), "b i j l (three n c) -> three (b i j) n l c", three=3, n=self.n_heads)
        if self.window:
            k, v, bias = self._with_past(k, v, x.shape[0], memory)
            y = attend(q, k, v, bias)
        else:
            y = attend(q, k, v)
        b, i, j = x.shape[:3]
        return self.out(rearrange(y, "(b i j) n l c -> b i j l (n c)", b=b, i=i, j=j)).movedim(-2, self.axis)

    def _with_past(self, k: Tensor, v: Tensor, batch: int, memory: Memory | None) -> tuple[Tensor, Tensor, Tensor]:
        """Put past keys and values in front; also returns the bias (n, queries, keys), -inf outside the window."""
        both = rearrange([k, v], "two (b p) n l c -> b (two p n) l c", b=batch)
        both = prepend_past(self, both, self.window - 1, memory)
        k, v = rearrange(both, "b (two p n) l c -> two (b p) n l c", two=2, n=self.n_heads)
        keys, queries = k.shape[2], k.shape[2] - self.window + 1
        ago = torch.arange(queries, device=k.device)[:, None] + self.window - 1 - torch.arange(keys, device=k.device)
        inside = (ago >= 0) & (ago < self.window)
        bias = self.relative_bias[:, ago.clamp(0, self.window - 1)].masked_fill(~inside, float("-inf"))
        return k, v, bias.to(k.dtype)


class AxialAttention(nn.Module):
    """The sum of attention along time, along height and along width (Ho et al., 2019)."""

    def __init__(self, channels: int, n_heads: int, window: int = 0) -> None:
        super().__init__()
        self.axes = nn.ModuleList(
            AxisAttention(channels, n_heads, axis, window if axis == 1 else 0) for axis in (1, 2, 3)
        )

    def forward(self, x: Tensor, positions: Tensor, memory: Memory | None = None) -> Tensor:
        """Attend within (b, c, t, h, w), to which position embeddings (t, h, w, c) or (h, w, c) are added."""
        y = x.movedim(1, -1) + positions.to(x.dtype)
        return sum(axis(y, memory) for axis in self.axes).movedim(-1, 1)  # type: ignore[union-attr]
