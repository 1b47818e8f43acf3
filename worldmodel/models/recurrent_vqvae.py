"""A recurrent VQ-VAE: encoder and decoder receive what the decoder made of earlier frames.

A VQ-VAE of single frames paints every frame from its codes alone, so whatever a prior forgets to repeat is gone. Here
the decoder composes a frame of three pictures, mixed by masks:

* the last reconstruction, moved by a small flow: what stays or moves needs no codes (SAVP, Lee et al. 2018; skip
  connections for planning, Ebert et al. 2017);
* the anchor, the first picture of the episode or dream: what comes into view again is still known;
* new content, painted from the codes.

The codes carry only what the past and the action do not give (delta-IRIS, Micheli et al. 2024). Training is closed
loop: the model goes on from its own reconstructions, over many updates, so that errors do not add up in a long dream.

Decisions:

* The state is made of pictures of uint8, rounded as an observer would receive them. Encoding, decoding and dreaming
  therefore go on from the same bits.
* The first frame is given as it is, and is its own past. Its codes say "nothing has changed", roughly.
* A bicubic warp: a bilinear one blurs a moving object a little more with every step.

Dimensions: b lanes, t frames, h w space (H W for codes), c channels, a numbers of an action, p pictures of a state.
Frames are uint8 (b, t, h, w, c); inside, pictures are (b, c, h, w) in [-0.5, 0.5]. Codes are int64 (b, t, H, W, g).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.layers import Memory
from worldmodel.models.quantizer import Quantizer, codebook_usage
from worldmodel.models.vqvae import VQVAEConfig, to_float, to_uint8

LAST, ANCHOR = 0, -1
"""Places in a state: the last reconstruction first, earlier ones after it, the anchor at the end."""
ACTION_DIM = 64
"""Channels of an embedded action."""
N_WORST, CHANGE = 0.01, 0.06
"""Fraction of a picture's pixels that count as its worst; by how much a pixel changes that moves."""


class ResBlock(nn.Module):
    """x + conv(conv(x)), each after norm and SiLU; an action scales and shifts the second norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(ACTION_DIM, 2 * width)
        for parameter in (self.conv2.weight, self.film.weight, self.film.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        scale, shift = self.film(action)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))


class DownPath(nn.Module):
    """Pictures (b, n, h, w) -> features at half of their size, then of each smaller one, down to that of the codes."""

    def __init__(self, n_channels: int, widths: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * n_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(ResBlock(width) for width in widths)

    def forward(self, pictures: Tensor, action: Tensor) -> list[Tensor]:
        x = self.blocks[0](self.stem(F.pixel_unshuffle(pictures, 2)), action)
        features = [x]
        for conv, block in zip(self.down, list(self.blocks)[1:], strict=True):
            features.append(block(conv(features[-1]), action))
        return features


class UpPath(nn.Module):
    """Features of all sizes -> numbers (b, n, h, w) for each pixel."""

    def __init__(self, n_channels: int, widths: list[int]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairs)
        self.blocks = nn.ModuleList(ResBlock(a) for a, _ in pairs)
        self.norm, self.out = nn.GroupNorm(8, widths[0]), nn.Conv2d(widths[0], 4 * n_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, skips: list[Tensor], action: Tensor) -> Tensor:
        for conv, block, skip in zip(self.up, self.blocks, reversed(skips), strict=True):
            x = block(conv(F.interpolate(x, scale_factor=2.0)) + skip, action)
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))), 2)


class RecurrentVQVAE(nn.Module):
    """Frames <-> codes, given the reconstructions so far and the action that led into each frame."""

    grid: Tensor

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        c, widths = config.channels, [*config.downsample_channels, config.hidden_channels]
        features = config.embedding_dim * config.n_codebooks
        self.action = nn.Sequential(nn.Linear(max(1, config.action_dim), ACTION_DIM), nn.SiLU())
        self.encoder, self.encoder_out = DownPath(4 * c, widths), ResBlock(widths[-1])
        self.pre_vq_conv = nn.Conv2d(widths[-1], features, 1)
        self.quantizer = Quantizer(
            config.n_codes, config.embedding_dim, config.n_codebooks, code_reset_threshold=config.code_reset_threshold
        )
        self.past, self.post_vq_conv = (
            DownPath((config.past_frames + 1) * c, widths),
            nn.Conv2d(features, widths[-1], 1),
        )
        self.decoder_in = nn.ModuleList(ResBlock(widths[-1]) for _ in range(config.n_res_blocks))
        self.decoder = UpPath(2 + 3 + c, widths)
        favored = torch.zeros(2 + 3 + c, 4)
        favored[2] = 2.0  # before training the last picture mostly stays as it is
        self.decoder.out.bias = nn.Parameter(favored.flatten())
        rows, columns = (torch.arange(n, dtype=torch.float32) for n in config.frame_size)
        self.register_buffer("grid", torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1), persistent=False)

    def start(self, frames: Tensor) -> Tensor:
        """The state (b, p, h, w, c) before the first frame (b, h, w, c) of an episode or a dream: that frame itself."""
        return frames[:, None].repeat(1, self.config.past_frames + 1, 1, 1, 1)

    def encode(self, frames: Tensor, actions: Tensor, memory: Memory) -> Tensor:
        """Codes (b, t, H, W, g) of frames (b, t, h, w, c), into which actions (b, t, a) led; the memory goes on."""
        codes = []
        for frame, action in zip(frames.unbind(1), actions.unbind(1), strict=True):
            past = self._pictures(memory.setdefault(self, self.start(frame)))
            features = self._encode(self._pictures(frame), past, self._embed(action))
            codes.append(self.quantizer(features).codes)
            self._advance(codes[-1], action, memory)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor, actions: Tensor, memory: Memory) -> Tensor:
        """Frames (b, t, h, w, c), uint8, of codes (b, t, H, W, g), from the state that the memory has; it goes on."""
        steps = zip(codes.unbind(1), actions.unbind(1), strict=True)
        return torch.stack([self._advance(code, action, memory) for code, action in steps], 1)

    def forward(self, frames: Tensor, actions: Tensor, state: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The training loss of t steps, and the state after them.

        Frames (b, t + 1, h, w, c) begin with the one before, which says what moves; actions (b, t, a) lead into the
        others. No gradient passes from one step to the next.
        """
        parts: list[dict[str, Tensor]] = []
        for before, frame, action in zip(
            frames[:, :-1].unbind(1), frames[:, 1:].unbind(1), actions.unbind(1), strict=True
        ):
            past, truth, embedded = self._pictures(state), self._pictures(frame), self._embed(action)
            quantized = self.quantizer(self._encode(truth, past, embedded))
            picture = self._compose(quantized.quantized, past, embedded)
            error = (picture - truth).square()
            changed = (truth - self._pictures(before)).abs().amax(1, keepdim=True) > CHANGE
            loss = self._weighted(error, changed) + self.config.commitment_weight * quantized.commitment_loss.float()
            nmse = error.detach().mean() / self.config.data_variance
            usage = codebook_usage(quantized.codes, self.config.n_codes)
            parts.append({"loss": loss, "nmse": nmse, "commitment": quantized.commitment_loss.detach(), **usage})
            state = _next(state, _bytes(picture.detach()))
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}, state

    def _weighted(self, error: Tensor, changed: Tensor) -> Tensor:
        """The mean squared error (b, c, h, w) over the data's variance. What changed, and what is worst, counts more.

        A plain mean hardly notices that something small is lost.
        """
        weights = 1 + self.config.motion_loss_weight * changed
        mean = (error * weights / weights.mean()).mean()
        pixels = error.mean(1).flatten(1)
        worst = pixels.topk(max(1, int(N_WORST * pixels.shape[1])), dim=1).values.mean()
        return (mean + self.config.worst_pixels_weight * worst) / self.config.data_variance

    def _embed(self, actions: Tensor) -> Tensor:
        """(b, a) -> (b, ACTION_DIM)."""
        dtype = self.pre_vq_conv.weight.dtype
        return self.action(actions.to(dtype) if actions.shape[-1] else actions.new_zeros(len(actions), 1, dtype=dtype))

    def _pictures(self, frames: Tensor) -> Tensor:
        """uint8 (..., h, w, c) -> [-0.5, 0.5] (..., c, h, w)."""
        return to_float(frames, self.pre_vq_conv.weight.dtype).movedim(-1, -3)

    def _encode(self, truth: Tensor, past: Tensor, action: Tensor) -> Tensor:
        """Features (b, H, W, g*d) of a frame (b, c, h, w) and the state's pictures (b, p, c, h, w)."""
        last, anchor = past[:, LAST], past[:, ANCHOR]
        x = self.encoder(torch.cat([truth, last, truth - last, anchor], 1), action)[-1]
        return self.pre_vq_conv(self.encoder_out(x, action)).movedim(1, -1)

    def _compose(self, features: Tensor, past: Tensor, action: Tensor) -> Tensor:
        """The frame (b, c, h, w), float, of codes' vectors (b, H, W, g*d) and the state's pictures."""
        *skips, x = self.past(past.flatten(1, 2), action)
        x = x + self.post_vq_conv(features.to(x.dtype).movedim(-1, 1))
        for block in self.decoder_in:
            x = block(x, action)
        out = self.decoder(x, skips, action)
        out = out.to(torch.promote_types(out.dtype, torch.float32))  # a bfloat16 pixel has 8 bits, a flow fewer
        flow, masks, new = out.split((2, 3, self.config.channels), dim=1)
        flow, masks = self.config.max_flow * torch.tanh(flow / self.config.max_flow), masks.softmax(1)
        moved = _warp(past[:, LAST].to(out.dtype), flow, self.grid.to(out.dtype))
        return masks[:, :1] * moved + masks[:, 1:2] * past[:, ANCHOR] + masks[:, 2:] * new

    def _advance(self, codes: Tensor, action: Tensor, memory: Memory) -> Tensor:
        """The next frame (b, h, w, c), uint8, which becomes the last one of the state."""
        state = memory[self]
        frame = _bytes(self._compose(self.quantizer.embed(codes), self._pictures(state), self._embed(action)))
        memory[self] = _next(state, frame)
        return frame


def _bytes(picture: Tensor) -> Tensor:
    """[-0.5, 0.5] (b, c, h, w) -> uint8 (b, h, w, c)."""
    return to_uint8(picture).movedim(1, -1)


def _next(state: Tensor, frame: Tensor) -> Tensor:
    """The state after a frame (b, h, w, c): it is the last, the one before it the second, the anchor stays."""
    return torch.cat([frame[:, None], state[:, : ANCHOR - 1], state[:, ANCHOR:]], 1)


def _warp(picture: Tensor, flow: Tensor, grid: Tensor) -> Tensor:
    """A picture (b, c, h, w) whose pixel at (y, x) is taken from (y, x) + flow (b, 2, h, w), in columns and rows."""
    height, width = picture.shape[-2:]
    size = flow.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    places = (grid + flow.movedim(1, -1)) / size * 2 - 1
    return F.grid_sample(picture, places, mode="bicubic", padding_mode="border", align_corners=True)
