"""Settings of the prior (Table 9), for the prior, its blocks and its head.

`PriorSettings` is what users choose. `PriorConfig` adds what follows from the VQ-VAE and from the conditioning.
train/prior.py computes these values, so they are not flags.
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
    """Architecture of a prior (Table 9); the defaults are its ViZDoom column."""

    mode: Literal["paper", "stream"] = "paper"
    """paper: attends to a whole clip and ends after it; stream: conditioned frame by frame, without end."""
    decoding_order: OrderName = "raster"
    """Order in which the positions of a frame are predicted: raster takes the most passes, block the fewest."""
    patch_size: Pixels = 1
    """Rows and columns of codes that make one position of the transformer. Above 1, a position also holds the codes of
    all codebooks."""
    window: Positive = 8
    """stream mode: attention span, in latent frames, the current one included."""
    image_input: bool = False
    """stream mode: also take the last reconstruction as input, encoded by a small CNN. Codes of a recurrent VQ-VAE need
    it, because they say what changes, not what is there."""
    n_cond_frames: Count = 0
    """Number of conditioning frames, which a 3D ResNet encodes and every layer attends to; 0 for none."""
    resnet_depth: Literal[18, 34] = 34
    """Depth of the ResNet for conditioning frames."""
    cond_dim: Channels = 512
    """Output channels of the ResNet for conditioning frames, a multiple of 8."""
    d_model: Channels = 512
    """Width of the transformer."""
    n_heads: Channels = 4
    """Number of attention heads."""
    n_kv_heads: Count = 0
    """Number of key and value heads, each shared by several query heads (grouped-query attention); 0 for `n_heads`."""
    n_layers: Layers = 16
    """Number of transformer blocks."""
    d_ff: Channels = 2048
    """Width of the hidden layer of the feed-forward networks."""
    local_window: Count = 0
    """Sparse attention: a position attends to this many positions before it, to its own position in earlier frames, and
    to its column in its own frame; 0 for dense attention. The official code's 4 local blocks of 32 correspond to 128.
    """
    dropout: FractionBelow1 = 0.2
    """Dropout probability after each sublayer."""
    attention_dropout: FractionBelow1 = 0.0
    """Dropout probability of attention weights. The paper and its repository have none; the later official repository
    has 0.3."""
    pos_emb_init_std: NotNegative = 0.01
    """Initial standard deviation of the position embeddings. The official code has 0.01. With 1 the prior learns much
    faster at first: after a thousand steps it is about one bit per code better."""
    code_noise: Fraction = 0.0
    """Training only: up to this fraction of the input codes of a clip are replaced by random ones; 0 for none."""
    image_noise: Fraction = 0.0
    """Training only, with image_input: up to this standard deviation of noise is added to the images of a clip, whose
    values are from -0.5 to 0.5; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_input and self.mode == "paper":
            raise UserError("a paper-mode prior sees whole clips of codes; image_input needs mode = stream")
        if self.image_noise and not self.image_input:
            raise UserError("image_noise needs the images of image_input; set image_input, or image_noise to 0")
        if self.attention_dropout and self.local_window:
            raise UserError("sparse attention (local_window > 0) has no attention_dropout; set one of them to 0")
        if self.d_model % (2 * self.n_heads):
            raise UserError(
                f"d_model = {self.d_model} cannot be divided into {self.n_heads} heads of even size; choose a multiple "
                f"of {2 * self.n_heads}"
            )
        if self.n_heads % (self.n_kv_heads or 1):
            raise UserError(
                f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}; choose a divisor"
            )
        if self.cond_dim < 8 or self.cond_dim % 8:
            raise UserError(
                f"cond_dim = {self.cond_dim} must be a multiple of 8, because the ResNet starts with an eighth of it"
            )
        if self.n_cond_frames and self.mode == "stream":
            raise UserError(
                "a stream-mode prior starts from a context, not from conditioning frames; use mode = paper for "
                "n_cond_frames > 0"
            )


@dataclass(frozen=True, kw_only=True)
class PriorConfig(PriorSettings):
    """Everything that a prior is built from."""

    latent_shape: tuple[Positive, Pixels, Pixels] = (8, 32, 32)
    """Latent frames of a training clip, rows and columns of codes."""
    n_codebooks: Channels = 1
    """Number of codebooks of the VQ-VAE."""
    n_codes: Channels = 1024
    """Number of codes of a codebook: the vocabulary size."""
    embedding_dim: Channels = 256
    """Dimension of a code vector."""
    conditioning: Conditioning = "none"
    """Whether there is a condition for each latent frame, one for the clip, or none."""
    condition_dim: Count = 0
    """Length of a condition: its actions, then its class."""
    condition_scale: tuple[AboveZero, ...] = ()
    """Divisor of each number of the condition; empty for one-hot conditions, which are not scaled."""
    n_classes: Count = 0
    """Number of classes; the last `n_classes` numbers of a condition are the class, one-hot. 0 for none."""
    cond_frame_shape: tuple[Pixels, Pixels, Channels] = (64, 64, 3)
    """Height, width and channels of a frame, for conditioning frames and for image input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_shape[1] % self.patch_size or self.latent_shape[2] % self.patch_size:
            raise UserError(
                f"{self.latent_shape[1]} x {self.latent_shape[2]} codes cannot be divided into patches of "
                f"{self.patch_size} x {self.patch_size}; choose --model.patch-size so that it divides both"
            )
        if (self.conditioning == "none") != (self.condition_dim == 0):
            raise UserError(
                f"conditioning = {self.conditioning} is incompatible with condition_dim = {self.condition_dim}"
            )
        if self.condition_scale and len(self.condition_scale) != self.condition_dim:
            raise UserError(
                f"a condition of {self.condition_dim} numbers needs as many scales, not {len(self.condition_scale)}"
            )
        if self.n_classes > self.condition_dim:
            raise UserError(f"{self.n_classes} classes do not fit into a condition of {self.condition_dim} numbers")
        if self.mode == "stream" and self.conditioning == "clip":
            raise UserError(
                "a stream-mode prior is conditioned frame by frame; choose conditioning = frame, or mode = paper"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """(rows, columns, codebooks) of the transformer's positions in a frame."""
        _, h, w = self.latent_shape
        return (h, w, self.n_codebooks) if self.patch_size == 1 else (h // self.patch_size, w // self.patch_size, 1)

    @property
    def codes_per_position(self) -> int:
        """m, the number of codes of a position."""
        return 1 if self.patch_size == 1 else self.patch_size**2 * self.n_codebooks

    @property
    def codes_per_frame(self) -> int:
        """Number of codes of a latent frame."""
        return self.latent_shape[1] * self.latent_shape[2] * self.n_codebooks

    @property
    def attention_frames(self) -> int:
        """Attention span in latent frames."""
        return self.window if self.mode == "stream" else self.latent_shape[0]
