"""Settings of the prior (Table 9), which the prior, its blocks and its head all read.

`PriorSettings` is what a person chooses. `PriorConfig` adds what follows from the VQ-VAE and from what the prior is
conditioned on, so it is no flag. `train/prior.py` works it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodel.models.decoding_order import OrderName
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import (
    AboveZero,
    Channels,
    Count,
    Fraction,
    FractionBelow1,
    Layers,
    NotNegative,
    Pixels,
    Positive,
    Settings,
)

Conditioning = Literal["none", "frame", "clip"]


@dataclass(frozen=True, kw_only=True)
class PriorSettings(Settings):
    """What is chosen; the defaults are Table 9's ViZDoom column."""

    mode: Literal["paper", "stream"] = "paper"
    decoding_order: OrderName = "raster"
    """Order of the positions of a frame."""
    patch_size: Pixels = 1
    """Rows and columns of codes that make one position of the transformer; all books are inside it if above 1."""
    window: Positive = 8
    """stream: latent frames that attention reaches, the current one included."""
    n_cond_frames: Count = 0
    """Conditioning frames, which a 3D ResNet reads and every layer looks at; 0 for none."""
    resnet_depth: Literal[18, 34] = 34
    """Depth of the ResNet."""
    cond_dim: Channels = 512
    """Channels that come out of it, a multiple of 8."""
    d_model: Channels = 512
    """Embedding size."""
    n_heads: Channels = 4
    n_kv_heads: Count = 0
    """Heads of keys and values, each shared by several heads of queries; 0 for as many as those."""
    n_layers: Layers = 16
    d_ff: Channels = 2048
    local_window: Count = 0
    """Sparse attention: a position sees the last so many positions, its own place in earlier frames, and its column in
    its own frame. 0 is dense. The official code has blocks of 32, four of them local: 128."""
    dropout: FractionBelow1 = 0.2
    attention_dropout: FractionBelow1 = 0.0
    """Of the shares of attention. The paper has none, nor has its repository; the later official one has 0.3."""
    pos_emb_init_std: NotNegative = 0.01
    """Standard deviation of position embeddings before training. The official code has 0.01; 1 learns much faster at
    first, so that a training of a thousand steps gains a bit per code."""
    code_noise: Fraction = 0.0
    """In training, up to this share of a clip's given codes are random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_dropout and self.local_window:
            raise UserError("sparse attention (local_window > 0) has no attention_dropout; set one of them to 0")
        if self.d_model % (2 * self.n_heads):
            raise UserError(
                f"d_model = {self.d_model} cannot be divided into {self.n_heads} heads of even size; choose another"
            )
        if self.n_heads % (self.n_kv_heads or 1):
            raise UserError(f"{self.n_heads} heads cannot share {self.n_kv_heads} of keys and values; choose a divisor")
        if self.cond_dim < 8 or self.cond_dim % 8:
            raise UserError(
                f"cond_dim = {self.cond_dim} must be a multiple of 8: the ResNet begins with an eighth of them"
            )
        if self.n_cond_frames and self.mode == "stream":
            raise UserError(
                "a stream begins with a context, not with conditioning frames; use mode = paper for n_cond_frames > 0"
            )


@dataclass(frozen=True, kw_only=True)
class PriorConfig(PriorSettings):
    """All that a prior is built from."""

    latent_shape: tuple[Positive, Pixels, Pixels] = (8, 32, 32)
    """Latent frames of a training clip, rows, columns."""
    n_codebooks: Channels = 1
    n_codes: Channels = 1024
    """Vocabulary."""
    embedding_dim: Channels = 256
    """Channels of a code's vector."""
    conditioning: Conditioning = "none"
    condition_dim: Count = 0
    condition_scale: tuple[AboveZero, ...] = ()
    """What the numbers of the condition are divided by; none for one-hot ones."""
    n_classes: Count = 0
    """The last so many numbers of the condition are a class, one-hot."""
    cond_frame_shape: tuple[Pixels, Pixels, Channels] = (64, 64, 3)
    """Height, width and channels of a conditioning frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_shape[1] % self.patch_size or self.latent_shape[2] % self.patch_size:
            raise UserError(
                f"{self.latent_shape[1]} x {self.latent_shape[2]} codes have no patches of {self.patch_size}; set "
                "--model.patch-size"
            )
        if (self.conditioning == "none") != (self.condition_dim == 0):
            raise UserError(f"conditioning = {self.conditioning} does not go with condition_dim = {self.condition_dim}")
        if self.condition_scale and len(self.condition_scale) != self.condition_dim:
            raise UserError(f"a condition of {self.condition_dim} numbers has not {len(self.condition_scale)} scales")
        if self.n_classes > self.condition_dim:
            raise UserError(f"{self.n_classes} classes do not fit into a condition of {self.condition_dim} numbers")
        if self.mode == "stream" and self.conditioning == "clip":
            raise UserError("a stream is conditioned frame by frame; choose conditioning = frame, or mode = paper")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows, columns and books of a frame's positions."""
        _, h, w = self.latent_shape
        return (h, w, self.n_codebooks) if self.patch_size == 1 else (h // self.patch_size, w // self.patch_size, 1)

    @property
    def codes_per_position(self) -> int:
        """m, the codes of a position."""
        return 1 if self.patch_size == 1 else self.patch_size**2 * self.n_codebooks

    @property
    def codes_per_frame(self) -> int:
        """Codes of a latent frame."""
        return self.latent_shape[1] * self.latent_shape[2] * self.n_codebooks

    @property
    def attention_frames(self) -> int:
        """Latent frames that attention covers."""
        return self.window if self.mode == "stream" else self.latent_shape[0]
