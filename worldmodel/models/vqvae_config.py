"""What a VQ-VAE is built from (section 3, Table 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AboveZero, Channels, Count, Layers, NotNegative, Pixels, Positive, Range, Settings

Kernel = Annotated[int, Range(1, 64)]


@dataclass(frozen=True, kw_only=True)
class VQVAESettings(Settings):
    """Architecture and loss of a VQ-VAE (Table 8); the defaults are its BAIR / RoboNet / ViZDoom column."""

    n_frames: Positive = 16
    """Number of frames of a training clip."""
    frame_size: tuple[Pixels, Pixels] = (64, 64)
    """Height and width of a frame, in pixels."""
    channels: Channels = 3
    """Color channels of a frame."""
    stride: tuple[Pixels, Pixels, Pixels] = (2, 2, 2)
    """Downsampling factors of time, height and width."""
    mode: Literal["paper", "stream"] = "paper"
    """paper: takes a whole clip as input; stream: causal in time, for videos of any length."""
    window: Positive = 4
    """stream mode: attention span in time, in latent frames, the current one included."""
    past_frames: Count = 0
    """stream mode: number of last reconstructions that the decoder receives (a `RecurrentVQVAE`); 0 for the VQ-VAE of
    the paper."""
    max_flow: AboveZero = 6.0
    """past_frames: largest distance by which the decoder moves the last reconstruction, in pixels."""
    worst_pixels_weight: NotNegative = 1.0
    """past_frames: loss weight of the worst 1% of a frame's pixels."""
    hidden_channels: Channels = 240
    """Channels of the convolutions."""
    downsample_channels: tuple[Channels, ...] = ()
    """Channels after each strided convolution except the last, highest resolution first; empty for `hidden_channels`
    everywhere. A small model spends most of its time there. past_frames: with fewer of them the first convolution takes
    larger patches of pixels, which is faster."""
    residual_channels: Channels = 128
    """Channels inside a residual block."""
    n_res_blocks: Layers = 4
    """Number of residual blocks in the encoder, and again in the decoder."""
    attention: bool = True
    """Whether each residual block ends with axial attention."""
    n_heads: Channels = 2
    """Number of attention heads."""
    norm: Literal["layer", "batch"] = "layer"
    """Normalization: layer as the paper says, batch as in the official code."""
    kernel_size: Kernel = 3
    """Kernel size of the encoder's strided convolutions."""
    time_kernel_size: Kernel = 3
    """Kernel size in time of the strided and transposed convolutions that do not stride in time. With 1 they treat each
    frame separately, at a third of the cost, and only the residual blocks connect frames."""
    n_codes: Channels = 1024
    """Number of codes of a codebook."""
    embedding_dim: Channels = 256
    """Dimension of a code vector."""
    n_codebooks: Channels = 1
    """Number of codebooks (Table 7)."""
    hysteresis: NotNegative = 0.0
    """Hysteresis of `encode`: a position keeps its code of the previous frame unless another code is closer by more
    than this fraction of the codes' variance; 0 always takes the closest code. Many codes look nearly the same, and
    noise, which no prior can predict, would pick one of them at random. Training the VQ-VAE does not depend on it."""
    code_reset_threshold: AboveZero = 1.0
    """Codes that a batch uses less often than this, on average, are reset to encoder outputs; use less for smaller
    batches."""
    commitment_weight: NotNegative = 0.25
    """Weight of the commitment loss."""
    motion_loss_weight: NotNegative = 0.0
    """Extra weight of moving pixels in the reconstruction loss, relative to the rest; 0 weights all pixels alike. Small
    moving objects, such as a fireball in Doom, are only a few of 4,096 pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, n, s in zip(
            ("frames", "height", "width"), (self.n_frames, *self.frame_size), self.stride, strict=True
        ):
            if n % s:
                raise UserError(f"{n} {name} cannot be divided by a stride of {s}; choose a stride that divides {n}")
        depth = len(layer_strides(self.stride))
        if self.past_frames:
            self._check_recurrent()
        elif self.downsample_channels and len(self.downsample_channels) != depth - 1:
            raise UserError(
                f"downsample_channels = {self.downsample_channels} has {len(self.downsample_channels)} entries; give "
                f"one for each of the first {depth - 1} strided convolutions"
            )
        if self.attention and self.hidden_channels % self.n_heads:
            raise UserError(
                f"hidden_channels = {self.hidden_channels} cannot be divided among {self.n_heads} heads; choose a "
                "multiple"
            )

    def _check_recurrent(self) -> None:
        time, height, width = self.stride
        if self.hysteresis:
            raise UserError(f"past_frames = {self.past_frames} takes no hysteresis; set one of them to 0")
        if self.mode != "stream" or time != 1:
            raise UserError(
                f"past_frames = {self.past_frames} needs mode = stream and a time stride of 1, because each frame is "
                "decoded from the frames before it"
            )
        if height != width or height < 2 or height & (height - 1):
            raise UserError(
                f"past_frames = {self.past_frames} needs a stride of 2, 4, 8 or another power of two in height and "
                f"width, not {height} and {width}"
            )
        if 2 ** len(self.downsample_channels) > height:
            raise UserError(
                f"downsample_channels = {self.downsample_channels} has {len(self.downsample_channels)} entries, more "
                f"than a stride of {height} can be halved; give at most {height.bit_length() - 1}"
            )
        if any(n % 8 for n in (*self.downsample_channels, self.hidden_channels)):
            raise UserError(
                f"past_frames = {self.past_frames} needs downsample_channels and hidden_channels that are multiples of "
                "8, the number of groups of their norms"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(T, H, W) of a clip's codes."""
        t, h, w = (n // s for n, s in zip((self.n_frames, *self.frame_size), self.stride, strict=True))
        return t, h, w

    @property
    def causal(self) -> bool:
        """Whether the model is causal in time."""
        return self.mode == "stream"


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(VQVAESettings):
    """Everything that a VQ-VAE is built from."""

    action_dim: Count = 0
    """past_frames: length of an encoded action; 0 for data without actions."""
    action_scale: tuple[AboveZero, ...] = ()
    """past_frames: divisor of each number of an action; empty for one-hot actions, which are not scaled."""
    data_variance: AboveZero = 0.06
    """Variance of pixels scaled to [-0.5, 0.5]; train/vqvae.py measures it."""


def layer_strides(stride: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Split a stride into one stride for each convolution, by prime factors: (2, 4, 4) -> [(2, 2, 2), (1, 2, 2)]."""
    factors = [_primes(s) for s in stride]
    depth = max(1, *map(len, factors))
    return [tuple(f[i] if i < len(f) else 1 for f in factors) for i in range(depth)]  # type: ignore[misc]


def _primes(n: int) -> list[int]:
    for p in range(2, n + 1):
        if n % p == 0:
            return [p, *_primes(n // p)]
    return []
