"""Settings of the prior (Table 9), which the prior, its blocks and its head all read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodel.errors import UserError
from worldmodel.order import Name
from worldmodel.settings import (
    AboveZero,
    Channels,
    Count,
    Layers,
    NotNegative,
    Pixels,
    Positive,
    Settings,
    Share,
    ShareBelow1,
)

Condition = Literal["none", "frame", "clip"]


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Settings):
    """Table 9; the defaults are its ViZDoom column."""

    latent: tuple[Positive, Pixels, Pixels] = (8, 32, 32)
    """Latent frames of a training clip, rows, columns."""
    books: Channels = 1
    codes: Channels = 1024
    """Vocabulary."""
    code_dim: Channels = 256
    """Channels of a code's vector."""
    mode: Literal["paper", "stream"] = "paper"
    order: Name = "raster"
    """Order of the positions of a frame."""
    patch: Pixels = 1
    """Rows and columns of codes that make one position of the transformer; all books are inside it if above 1."""
    window: Positive = 8
    """stream: latent frames that attention reaches, the current one included."""
    condition: Condition = "none"
    condition_dim: Count = 0
    condition_scale: tuple[AboveZero, ...] = ()
    """What the numbers of the condition are divided by; none for one-hot ones."""
    classes: Count = 0
    """The last so many numbers of the condition are a class, one-hot."""
    seen: Count = 0
    """Conditioning frames, which a 3D ResNet reads and every layer looks at; 0 for none."""
    seen_shape: tuple[Pixels, Pixels, Channels] = (64, 64, 3)
    """Height, width and channels of a conditioning frame."""
    resnet: Literal[18, 34] = 34
    """Depth of the ResNet."""
    units: Channels = 512
    """Channels that come out of it, a multiple of 8."""
    width: Channels = 512
    """Embedding size."""
    heads: Channels = 4
    kv_heads: Count = 0
    """Heads of keys and values, each shared by several heads of queries; 0 for as many as those."""
    layers: Layers = 16
    feedforward: Channels = 2048
    local: Count = 0
    """Sparse attention: a position sees the last so many positions, its own place in earlier frames, and its column in
    its own frame. 0 is dense. The official code has blocks of 32, four of them local: 128."""
    dropout: ShareBelow1 = 0.2
    attention_dropout: ShareBelow1 = 0.0
    """Of the shares of attention. The paper has none, nor has its repository; the later official one has 0.3."""
    spread: NotNegative = 0.01
    """Standard deviation of position embeddings before training. The official code has 0.01; 1 learns much faster at
    first, so that a training of a thousand steps gains a bit per code."""
    noise: Share = 0.0
    """In training, up to this share of a clip's given codes are random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_dropout and self.local:
            raise UserError("sparse attention (local > 0) has no attention_dropout; set one of them to 0")
        if self.latent[1] % self.patch or self.latent[2] % self.patch:
            raise UserError(
                f"{self.latent[1]} x {self.latent[2]} codes have no patches of {self.patch}; set --model.patch"
            )
        if self.width % (2 * self.heads):
            raise UserError(
                f"width = {self.width} cannot be divided into {self.heads} heads of even size; choose another"
            )
        if self.heads % (self.kv_heads or 1):
            raise UserError(f"{self.heads} heads cannot share {self.kv_heads} of keys and values; choose a divisor")
        if (self.condition == "none") != (self.condition_dim == 0):
            raise UserError(f"condition = {self.condition} does not go with condition_dim = {self.condition_dim}")
        if self.condition_scale and len(self.condition_scale) != self.condition_dim:
            raise UserError(f"a condition of {self.condition_dim} numbers has not {len(self.condition_scale)} scales")
        if self.classes > self.condition_dim:
            raise UserError(f"{self.classes} classes do not fit into a condition of {self.condition_dim} numbers")
        if self.units < 8 or self.units % 8:
            raise UserError(f"units = {self.units} must be a multiple of 8: the ResNet begins with an eighth of them")
        if self.seen and self.mode == "stream":
            raise UserError(
                "a stream begins with a context, not with conditioning frames; use mode = paper for seen > 0"
            )
        if self.mode == "stream" and self.condition == "clip":
            raise UserError("a stream is conditioned frame by frame; choose condition = frame, or mode = paper")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows, columns and books of a frame's positions."""
        _, h, w = self.latent
        return (h, w, self.books) if self.patch == 1 else (h // self.patch, w // self.patch, 1)

    @property
    def group(self) -> int:
        """m, the codes of a position."""
        return 1 if self.patch == 1 else self.patch**2 * self.books

    @property
    def frame(self) -> int:
        """Codes of a latent frame."""
        return self.latent[1] * self.latent[2] * self.books

    @property
    def reach(self) -> int:
        """Latent frames that attention covers."""
        return self.window if self.mode == "stream" else self.latent[0]
