"""VQ-VAE: video to discrete codes and back (section 3, Table 8).

Encoder: strided 3D convolutions, one more at the latent size, attention residual blocks, a projection to the
codes. Decoder: the reverse, with transposed convolutions. Where the sources differ:

* Norm. The paper says LayerNorm, the official code has BatchNorm: `norm="layer"` or `"batch"`.
* Encoder kernel. Table 8 prints 3, the official code has 4: `kernel`.
* Reconstruction loss. The mean squared error is divided by the variance of the data (section 4.1); the official code
  divides by 0.06 whatever the data. Here `variance` is measured on the training split.
* Strides. The official code fails where axes need unequal numbers of convolutions, such as (1, 2, 2); here each axis is
  factored on its own, and any whole stride will do.

`mode="paper"` sees a whole clip. `mode="stream"` is causal with finite memory: frame t of the output needs
codes up to its own, codes at t need frames up to theirs, so that an endless video can be encoded and decoded as
it comes.

Dimensions: b batch, t h w time and space (T H W for codes), c channels, g codebooks.
Frames are uint8 (b, t, h, w, c); codes are int64 (b, T, H, W, g).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.codebook import Codebook, usage
from worldmodel.errors import UserError
from worldmodel.layers import AxialAttention, AxisPositions, ChannelNorm, Conv, ConvTranspose, Memory
from worldmodel.settings import AboveZero, Channels, Layers, NotNegative, Pixels, Positive, Range, Settings

Kernel = Annotated[int, Range(1, 64)]


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(Settings):
    """Table 8; the defaults are its BAIR / RoboNet / ViZDoom column."""

    frames: Positive = 16
    """Frames of a training clip."""
    size: tuple[Pixels, Pixels] = (64, 64)
    """Height and width of a frame."""
    channels: Channels = 3
    stride: tuple[Pixels, Pixels, Pixels] = (2, 2, 2)
    """Downsampling of time, height and width."""
    mode: Literal["paper", "stream"] = "paper"
    """paper: sees the whole clip; stream: causal in time, finite memory."""
    window: Positive = 4
    """stream: latent frames that temporal attention reaches, the current one included."""
    hidden: Channels = 240
    """Channels of the convolutions."""
    widths: tuple[Channels, ...] = ()
    """Channels after each strided convolution but the last, finest first, if not `hidden`: most of the work of a small
    model is done there."""
    residual: Channels = 128
    """Channels inside a residual block."""
    layers: Layers = 4
    """Residual blocks, in the encoder and again in the decoder."""
    attention: bool = True
    """Axial attention at the end of each residual block."""
    heads: Channels = 2
    norm: Literal["layer", "batch"] = "layer"
    kernel: Kernel = 3
    """Encoder filter size."""
    time_kernel: Kernel = 3
    """Filter size in time of those strided and transposed convolutions that do not stride in time. With 1 they treat
    each frame alone, at a third of the work, and time is left to the residual blocks."""
    codes: Channels = 1024
    """Codes of a codebook."""
    dim: Channels = 256
    """Channels of a code."""
    books: Channels = 1
    """Codebooks (Table 7)."""
    hysteresis: NotNegative = 0.0
    """How slow `encode` is to leave the code of the frame before, in shares of the codes' spread; training of the
    VQ-VAE does not depend on it. Many codes look nearly the same, and noise, which no prior can learn, would choose.
    """
    restart: NotNegative = 1.0
    """Codes that a batch uses less often than this, on average, restart; lower it with the batch."""
    commitment: NotNegative = 0.25
    focus: NotNegative = 0.0
    """Weight in the loss of what moves, over that of everything: a fireball of Doom is a few of 4,096 pixels."""
    variance: AboveZero = 0.06
    """Variance of the data at [-0.5, 0.5]; train/vqvae.py measures it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, n, s in zip(("frames", "height", "width"), (self.frames, *self.size), self.stride, strict=True):
            if n % s:
                raise UserError(f"{n} {name} cannot be divided by a stride of {s}; choose a stride that divides it")
        depth = len(layer_strides(self.stride))
        if self.widths and len(self.widths) != depth - 1:
            raise UserError(f"widths = {self.widths} must have an entry for each of the first {depth - 1} convolutions")
        if self.attention and self.hidden % self.heads:
            raise UserError(f"hidden = {self.hidden} cannot be divided among {self.heads} heads; choose a multiple")

    @property
    def latent(self) -> tuple[int, int, int]:
        """T, H, W of a clip's codes."""
        t, h, w = (n // s for n, s in zip((self.frames, *self.size), self.stride, strict=True))
        return t, h, w

    @property
    def causal(self) -> bool:
        return self.mode == "stream"


class ResidualBlock(nn.Module):
    """x + attention(conv1(conv3(x))), each after norm and ReLU (Figure 3)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        norm = ChannelNorm if config.norm == "layer" else nn.BatchNorm3d
        hidden, residual = config.hidden, config.residual
        self.norm1, self.conv1 = norm(hidden), Conv(hidden, residual, (3, 3, 3), causal=config.causal)
        self.norm2, self.conv2 = norm(residual), Conv(residual, hidden, (1, 1, 1))
        if config.attention:
            self.norm3 = norm(hidden)
            self.attention = AxialAttention(hidden, config.heads, config.window if config.causal else 0)

    def forward(self, x: Tensor, positions: Tensor | None, memory: Memory | None) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)), memory)
        y = self.conv2(F.relu(self.norm2(y)))
        if positions is not None:
            y = self.attention(F.relu(self.norm3(y)), positions, memory)
        return x + y


class Stack(nn.Module):
    """Residual blocks, then norm and ReLU."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.layers))
        self.norm = ChannelNorm(config.hidden) if config.norm == "layer" else nn.BatchNorm3d(config.hidden)

    def forward(self, x: Tensor, positions: Tensor | None, memory: Memory | None) -> Tensor:
        for block in self.blocks:
            x = block(x, positions, memory)
        return F.relu(self.norm(x))


class VQVAE(nn.Module):
    """Video <-> codes."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        hidden, features, causal = config.hidden, config.dim * config.books, config.causal
        strides = layer_strides(config.stride)
        widths = [config.channels, *(config.widths or [hidden] * (len(strides) - 1)), hidden]
        self.down = nn.ModuleList(
            Conv(a, b, (config.kernel if s[0] > 1 else config.time_kernel, config.kernel, config.kernel), s, causal)
            for a, b, s in zip(widths, widths[1:], strides, strict=False)
        )
        self.last = Conv(hidden, hidden, (3, 3, 3), causal=causal)
        self.encoder = Stack(config)
        self.to_code = nn.Conv3d(hidden, features, 1)
        self.codebook = Codebook(config.codes, config.dim, config.books, restart=config.restart)
        self.from_code = nn.Conv3d(features, hidden, 1)
        self.decoder = Stack(config)
        self.up = nn.ModuleList(
            ConvTranspose(b, a, s, causal, (config.time_kernel, 3, 3))
            for a, b, s in reversed(list(zip(widths, widths[1:], strides, strict=False)))
        )
        with torch.no_grad():  # the first guess has the spread of the data, not of the weights
            for parameter in self.up[-1].parameters():
                parameter.mul_(config.variance**0.5)
        if config.attention:  # shared by every axial attention of both halves; in a stream time is relative
            self.positions = AxisPositions(config.latent[1:] if causal else config.latent, hidden)

    def encode(self, frames: Tensor, memory: Memory | None = None) -> Tensor:
        """Frames (b, t, h, w, c) -> codes (b, T, H, W, g). With a memory, the frames that follow its last ones."""
        features = self._features(frames, memory)
        if not self.config.hysteresis:
            return self.codebook(features).codes
        before = None if memory is None else memory.get(self.codebook)
        codes = self.codebook.steady(features, self.config.hysteresis, before)
        if memory is not None:
            memory[self.codebook] = codes[:, -1]
        return codes

    def decode(self, codes: Tensor, memory: Memory | None = None) -> Tensor:
        """Codes (b, T, H, W, g) -> frames (b, t, h, w, c), float in [-0.5, 0.5] but for overshoot."""
        return self._frames(self.codebook.embed(codes), memory)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """The training loss of a batch of clips, and what it is made of."""
        quantised = self.codebook(self._features(frames))
        truth = to_float(frames)
        error = (self._frames(quantised.features).float() - truth).square()
        weighted = (error * motion(truth, self.config.focus)).mean() if self.config.focus else error.mean()
        loss = weighted / self.config.variance + self.config.commitment * quantised.commitment
        return {
            "loss": loss,
            "nmse": error.detach().mean() / self.config.variance,
            "commitment": quantised.commitment.detach(),
            **usage(quantised.codes, self.config.codes),
        }

    def _features(self, frames: Tensor, memory: Memory | None = None) -> Tensor:
        self._check(frames)
        x = to_float(frames, self.to_code.weight.dtype).movedim(-1, 1)
        for conv in self.down:
            x = F.relu(conv(x, memory))
        x = self.encoder(self.last(x, memory), self._positions(), memory)
        return self.to_code(x).movedim(1, -1)

    def _frames(self, features: Tensor, memory: Memory | None = None) -> Tensor:
        x = features.to(self.from_code.weight.dtype).movedim(-1, 1)
        x = self.decoder(self.from_code(x), self._positions(), memory)
        for i, conv in enumerate(self.up):
            x = conv(F.relu(x) if i else x, memory)
        return x.movedim(1, -1)

    def _positions(self) -> Tensor | None:
        return self.positions() if self.config.attention else None

    def _check(self, frames: Tensor) -> None:
        """Sizes are checked here, in one sentence, and not by a convolution in the depths."""
        wanted = (*self.config.size, self.config.channels)
        lengths = (
            frames.shape[1] % self.config.stride[0] == 0
            if self.config.causal
            else frames.shape[1] == self.config.frames
        )
        if frames.dim() != 5 or tuple(frames.shape[2:]) != wanted or not lengths:
            time = f"a multiple of {self.config.stride[0]}" if self.config.causal else self.config.frames
            raise UserError(
                f"this VQ-VAE takes clips of (batch, {time}, {', '.join(map(str, wanted))}), not {tuple(frames.shape)};"
                " record or resize the data to that, or train one for it"
            )


def layer_strides(stride: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """One stride for each convolution: (2, 4, 4) -> [(2, 2, 2), (1, 2, 2)]; primes, the spare axes at 1."""
    factors = [_primes(s) for s in stride]
    depth = max(1, *map(len, factors))
    return [tuple(f[i] if i < len(f) else 1 for f in factors) for i in range(depth)]  # type: ignore[misc]


def _primes(n: int) -> list[int]:
    for p in range(2, n + 1):
        if n % p == 0:
            return [p, *_primes(n // p)]
    return []


def motion(frames: Tensor, focus: float) -> Tensor:
    """Weights (b, t, h, w, 1) of mean 1 for clips (b, t, h, w, c): more where they change.

    1 plus `focus` times the change since the last frame, over the batch's mean change; a clip's first frame has the
    change of its second.
    """
    if frames.shape[1] == 1:
        return torch.ones_like(frames[..., :1])
    change = frames.diff(dim=1).abs().mean(-1, keepdim=True)
    change = torch.cat([change[:, :1], change], dim=1)
    mean = change.mean()
    return (1 + focus * torch.where(mean > 0, change / mean, 1.0)) / (1 + focus)


def to_float(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 -> [-0.5, 0.5] (section 4.1)."""
    return frames.to(dtype) / 255 - 0.5


def to_uint8(frames: Tensor) -> Tensor:
    """[-0.5, 0.5] -> uint8, rounded; what overshoots is cut."""
    return ((frames.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
