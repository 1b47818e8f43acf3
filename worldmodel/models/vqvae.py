"""VQ-VAE: video to discrete codes and back (section 3, Table 8).

Encoder: strided 3D convolutions, one more at the latent size, attention residual blocks, and a projection to the
codebook's dimension. Decoder: the reverse, with transposed convolutions. Where the sources differ:

* Norm. The paper says LayerNorm, the official code has BatchNorm: `norm="layer"` or `"batch"`.
* Encoder kernel. Table 8 says 3, the official code has 4: `kernel_size`.
* Reconstruction loss. The paper divides the mean squared error by the variance of the data (section 4.1); the official
  code always divides by 0.06. Here `data_variance` is measured on the training split.
* Strides. The official code fails where axes need unequal numbers of convolutions, such as (1, 2, 2). Here each axis is
  factored separately, so any integer stride works.

`mode="paper"` takes a whole clip. `mode="stream"` is causal with a finite receptive field in time: a decoded frame
depends only on codes up to its own time, and codes depend only on frames up to theirs. A video of any length can
therefore be encoded and decoded frame by frame.

Dimensions: b batch, t h w time and space (T H W for codes), c channels, g codebooks.
Frames are uint8 (b, t, h, w, c); codes are int64 (b, T, H, W, g).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.layers import (
    AxialAttention,
    AxialPositionEmbedding,
    ChannelNorm,
    Conv,
    ConvTranspose,
    Memory,
    at_least_float32,
)
from worldmodel.models.pixels import motion_weights, to_float, to_uint8
from worldmodel.models.quantizer import Quantizer, codebook_usage
from worldmodel.models.vqvae_config import VQVAEConfig, layer_strides
from worldmodel.utils.errors import UserError


def make_norm(config: VQVAEConfig, channels: int) -> nn.Module:
    """The config's norm, over the channels of (b, channels, t, h, w)."""
    return ChannelNorm(channels) if config.norm == "layer" else nn.BatchNorm3d(channels)


class ResidualBlock(nn.Module):
    """x + attention(conv1(conv3(x))), each after norm and ReLU (Figure 3)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        norm, hidden, residual = partial(make_norm, config), config.hidden_channels, config.residual_channels
        self.norm1, self.conv1 = norm(hidden), Conv(hidden, residual, (3, 3, 3), causal=config.causal)
        self.norm2, self.conv2 = norm(residual), Conv(residual, hidden, (1, 1, 1))
        if config.attention:
            self.norm3 = norm(hidden)
            self.attention = AxialAttention(hidden, config.n_heads, config.window if config.causal else 0)

    def forward(self, x: Tensor, positions: Tensor | None, memory: Memory | None) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)), memory)
        y = self.conv2(F.relu(self.norm2(y)))
        if positions is not None:
            y = self.attention(F.relu(self.norm3(y)), positions, memory)
        return x + y


class ResidualStack(nn.Module):
    """Residual blocks, then norm and ReLU."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.n_res_blocks))
        self.norm = make_norm(config, config.hidden_channels)

    def forward(self, x: Tensor, positions: Tensor | None, memory: Memory | None) -> Tensor:
        for block in self.blocks:
            x = block(x, positions, memory)
        return F.relu(self.norm(x))


class VQVAE(nn.Module):
    """Encodes video into discrete codes and decodes it back (section 3.1)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        hidden, features, causal = config.hidden_channels, config.embedding_dim * config.n_codebooks, config.causal
        strides = layer_strides(config.stride)
        widths = [config.channels, *(config.downsample_channels or [hidden] * (len(strides) - 1)), hidden]
        self.downsample = nn.ModuleList(
            Conv(
                a,
                b,
                (config.kernel_size if s[0] > 1 else config.time_kernel_size, config.kernel_size, config.kernel_size),
                s,
                causal,
            )
            for a, b, s in zip(widths, widths[1:], strides, strict=False)
        )
        self.conv_last = Conv(hidden, hidden, (3, 3, 3), causal=causal)
        self.encoder = ResidualStack(config)
        self.pre_vq_conv = nn.Conv3d(hidden, features, 1)
        self.quantizer = Quantizer(
            config.n_codes, config.embedding_dim, config.n_codebooks, code_reset_threshold=config.code_reset_threshold
        )
        self.post_vq_conv = nn.Conv3d(features, hidden, 1)
        self.decoder = ResidualStack(config)
        self.upsample = nn.ModuleList(
            ConvTranspose(b, a, s, causal, (config.time_kernel_size, 3, 3))
            for a, b, s in reversed(list(zip(widths, widths[1:], strides, strict=False)))
        )
        with torch.no_grad():  # so that the first outputs have the standard deviation of the data
            for parameter in self.upsample[-1].parameters():
                parameter.mul_(config.data_variance**0.5)
        if config.attention:  # shared by all axial attentions of encoder and decoder; in stream mode time is relative
            self.position_embedding = AxialPositionEmbedding(
                config.latent_shape[1:] if causal else config.latent_shape, hidden
            )

    def encode(self, frames: Tensor, memory: Memory | None = None, actions: Tensor | None = None) -> Tensor:
        """Encode frames into codes.

        Args:
            frames: uint8 (b, t, h, w, c); t is a multiple of the time stride, or in paper mode `n_frames`.
            memory: stream mode: past activations, updated in place. The frames continue those of the last call.
            actions: Ignored; a `RecurrentVQVAE` takes them.

        Returns:
            Codes (b, T, H, W, g), int64.

        Raises:
            UserError: If the frames have another shape than the config says.
        """
        features = self._encode_features(frames, memory)
        if not self.config.hysteresis:
            return self.quantizer(features).codes
        previous = None if memory is None else memory.get(self.quantizer)
        codes = self.quantizer.quantize_with_hysteresis(features, self.config.hysteresis, previous)
        if memory is not None:
            memory[self.quantizer] = codes[:, -1]
        return codes

    def decode(self, codes: Tensor, memory: Memory | None = None, actions: Tensor | None = None) -> Tensor:
        """Decode codes into frames.

        Args:
            codes: (b, T, H, W, g).
            memory: stream mode: past activations, updated in place. The codes continue those of the last call.
            actions: Ignored; a `RecurrentVQVAE` takes them.

        Returns:
            Frames (b, t, h, w, c), floats around [-0.5, 0.5]; see `to_uint8`.
        """
        return self._decode_features(self.quantizer.embed(codes), memory)

    def reconstruct(
        self, frames: Tensor, memory: Memory | None = None, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode frames and decode them again.

        Args:
            frames: uint8 (b, t, h, w, c).
            memory: As in `encode`.
            actions: Not used; a recurrent VQ-VAE takes them.

        Returns:
            Codes (b, T, H, W, g), and frames (b, t, h, w, c) uint8.
        """
        codes = self.encode(frames, memory)
        return codes, to_uint8(self.decode(codes, memory))

    def dream_parts(self) -> tuple[nn.Module, ...]:
        """The parts that run in every step of a dream, which may be cast to bfloat16."""
        return self.post_vq_conv, self.decoder, self.upsample

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """The training loss of a batch of clips.

        Args:
            frames: uint8 (b, t, h, w, c).

        Returns:
            Scalars: "loss", its parts "nmse" and "commitment", and the codebook's usage.
        """
        quantized = self.quantizer(self._encode_features(frames))
        decoded = at_least_float32(self._decode_features(quantized.quantized))
        truth = to_float(frames, decoded.dtype)
        error = (decoded - truth).square()
        weighted = (
            (error * motion_weights(truth, self.config.motion_loss_weight)).mean()
            if self.config.motion_loss_weight
            else error.mean()
        )
        loss = weighted / self.config.data_variance + self.config.commitment_weight * quantized.commitment_loss
        return {
            "loss": loss,
            "nmse": error.detach().mean() / self.config.data_variance,
            "commitment": quantized.commitment_loss.detach(),
            **codebook_usage(quantized.codes, self.config.n_codes),
        }

    def _encode_features(self, frames: Tensor, memory: Memory | None = None) -> Tensor:
        self._check_frames(frames)
        x = to_float(frames, self.pre_vq_conv.weight.dtype).movedim(-1, 1)
        for conv in self.downsample:
            x = F.relu(conv(x, memory))
        x = self.encoder(self.conv_last(x, memory), self._position_embeddings(), memory)
        return self.pre_vq_conv(x).movedim(1, -1)

    def _decode_features(self, features: Tensor, memory: Memory | None = None) -> Tensor:
        x = features.to(self.post_vq_conv.weight.dtype).movedim(-1, 1)
        x = self.decoder(self.post_vq_conv(x), self._position_embeddings(), memory)
        for i, conv in enumerate(self.upsample):
            x = conv(F.relu(x) if i else x, memory)
        return x.movedim(1, -1)

    def _position_embeddings(self) -> Tensor | None:
        return self.position_embedding() if self.config.attention else None

    def _check_frames(self, frames: Tensor) -> None:
        """Check the shape, so that the error message says what is expected."""
        wanted = (*self.config.frame_size, self.config.channels)
        lengths = (
            frames.shape[1] % self.config.stride[0] == 0
            if self.config.causal
            else frames.shape[1] == self.config.n_frames
        )
        if frames.dim() != 5 or tuple(frames.shape[2:]) != wanted or not lengths:
            time = f"a multiple of {self.config.stride[0]}" if self.config.causal else self.config.n_frames
            raise UserError(
                f"this VQ-VAE takes clips of (batch, {time}, {', '.join(map(str, wanted))}), not {tuple(frames.shape)};"
                " record or resize the data to that shape, or train a VQ-VAE for this one"
            )
