"""A recurrent VQ-VAE: encoder and decoder also receive the decoder's reconstructions of earlier frames.

A VQ-VAE of single frames decodes every frame from its codes alone. Whatever the prior fails to repeat then disappears.
Here the decoder blends three pictures into a frame, with masks:

* the last reconstruction, warped by a small flow: what stays or moves needs no codes (SAVP, Lee et al. 2018; skip
  connections for planning, Ebert et al. 2017);
* the anchor, which is the first picture of the episode or dream: what was hidden can come back into view;
* new content, decoded from the codes.

The codes carry only what the past and the action do not tell (delta-IRIS, Micheli et al. 2024). Training is closed
loop: the model continues from its own reconstructions over many updates, so that errors do not accumulate in a dream.

Decisions:

* The state consists of uint8 pictures, rounded like the frames that an observer gets. Encoding, decoding and dreaming
  therefore continue from identical bits.
* The first frame is given, so it is its own reconstruction. Its codes mean, roughly, that nothing has changed.
* The warp is bicubic: a bilinear one would blur a moving object a little more with every step.

Dimensions: b lanes, t frames, h w space (H W for codes), c channels, a numbers of an action, p pictures of a state.
Frames are uint8 (b, t, h, w, c); inside, pictures are (b, c, h, w) in [-0.5, 0.5]. Codes are int64 (b, t, H, W, g).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.layers import Memory, at_least_float32
from worldmodel.models.pixels import to_float, to_uint8
from worldmodel.models.quantizer import Quantizer, codebook_usage
from worldmodel.models.u_net import ACTION_DIM, DownPath, ResBlock, UpPath
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.ranks import batch_mean

LAST, ANCHOR = 0, -1
"""Places in a state: the last reconstruction first, earlier ones after it, the anchor at the end."""
N_WORST, CHANGE = 0.01, 0.06
"""Fraction of a picture's pixels that count as its worst, and the change above which a pixel counts as changed."""


class RecurrentVQVAE(nn.Module):
    """Frames <-> codes, given the reconstructions so far and the action that led into each frame."""

    grid: Tensor
    action_scale: Tensor

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        c, widths = config.channels, [*config.downsample_channels, config.hidden_channels]
        features, patch = config.embedding_dim * config.n_codebooks, config.stride[-1] // 2 ** (len(widths) - 1)
        self.action = nn.Sequential(nn.Linear(max(1, config.action_dim), ACTION_DIM), nn.SiLU())
        self.encoder, self.encoder_out = DownPath(4 * c, widths, patch), ResBlock(widths[-1])
        self.pre_vq_conv = nn.Conv2d(widths[-1], features, 1)
        self.quantizer = Quantizer(
            config.n_codes, config.embedding_dim, config.n_codebooks, code_reset_threshold=config.code_reset_threshold
        )
        self.past, self.post_vq_conv = (
            DownPath((config.past_frames + 1) * c, widths, patch),
            nn.Conv2d(features, widths[-1], 1),
        )
        self.decoder_in = nn.ModuleList(ResBlock(widths[-1]) for _ in range(config.n_res_blocks))
        self.decoder = UpPath(2 + 3 + c, widths, patch)
        favored = torch.zeros(2 + 3 + c, patch**2)
        self.register_buffer("action_scale", torch.tensor(config.action_scale or 1.0), persistent=False)
        favored[2] = 2.0  # before training, the frame is mostly the last picture
        self.decoder.out.bias = nn.Parameter(favored.flatten())
        rows, columns = (torch.arange(n, dtype=torch.float32) for n in config.frame_size)
        self.register_buffer("grid", torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1), persistent=False)

    def start(self, frames: Tensor) -> Tensor:
        """The state after the first frame of an episode or a dream.

        Args:
            frames: uint8 (b, h, w, c).

        Returns:
            Pictures (b, p, h, w, c), all of them that frame.
        """
        return frames[:, None].repeat(1, self.config.past_frames + 1, 1, 1, 1)

    def encode(self, frames: Tensor, memory: Memory | None = None, actions: Tensor | None = None) -> Tensor:
        """The codes (b, t, H, W, g) of `reconstruct`."""
        return self.reconstruct(frames, memory, actions)[0]

    def decode(self, codes: Tensor, memory: Memory | None = None, actions: Tensor | None = None) -> Tensor:
        """Decode codes into frames.

        Args:
            codes: (b, t, H, W, g).
            memory: Holds the state before the first code, with this model as the key; updated in place.
            actions: Encoded actions that led into each frame (b, t, a).

        Returns:
            Frames (b, t, h, w, c), floats in [-0.5, 0.5].

        Raises:
            UserError: If the memory has no state, or there are no actions.
        """
        if memory is None or self not in memory:
            raise UserError("codes of a recurrent VQ-VAE say what changes; give the picture that they start from")
        steps = zip(codes.unbind(1), self._check_actions(codes, actions).unbind(1), strict=True)
        return to_float(torch.stack([self._advance(code, action, memory) for code, action in steps], 1))

    def reconstruct(
        self, frames: Tensor, memory: Memory | None = None, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode frames, each after the reconstructions of those before it.

        Args:
            frames: uint8 (b, t, h, w, c).
            memory: Updated in place. If it has a state, the frames continue those of the last call; else the first
                frame is given to the decoder.
            actions: Encoded actions that led into each frame (b, t, a); for a given frame zeros.

        Returns:
            Codes (b, t, H, W, g), and the reconstructions (b, t, h, w, c) uint8.

        Raises:
            UserError: If frames or actions have another shape than the config says.
        """
        self._check_frames(frames)
        memory, codes, pictures = {} if memory is None else memory, [], []
        for frame, action in zip(frames.unbind(1), self._check_actions(frames, actions).unbind(1), strict=True):
            given = self not in memory
            state = memory.setdefault(self, self.start(frame))
            codes.append(self.quantizer(self._encode(frame, state, action)).codes)
            pictures.append(frame if given else self._advance(codes[-1], action, memory))
        return torch.stack(codes, 1), torch.stack(pictures, 1)

    def dream_parts(self) -> tuple[nn.Module, ...]:
        """The parts that run in every step of a dream, which may be cast to bfloat16."""
        return self.past, self.post_vq_conv, self.decoder_in, self.decoder

    def forward(self, frames: Tensor, actions: Tensor, state: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The training loss of t steps. No gradient passes from one step to the next.

        Args:
            frames: uint8 (b, t + 1, h, w, c). The first one precedes the steps, and only serves to find what changes.
            actions: Encoded actions that led into the others (b, t, a).
            state: Pictures (b, p, h, w, c) before the steps.

        Returns:
            Scalars ("loss", its parts "nmse" and "commitment", the codebook's usage), and the state after the steps.
        """
        parts: list[dict[str, Tensor]] = []
        for before, frame, action in zip(
            frames[:, :-1].unbind(1), frames[:, 1:].unbind(1), actions.unbind(1), strict=True
        ):
            quantized = self.quantizer(self._encode(frame, state, action))
            picture = self._compose(quantized.quantized, state, action)
            truth, previous = (to_float(x, picture.dtype).movedim(-1, 1) for x in (frame, before))
            error = (picture - truth).square()
            changed = (truth - previous).abs().amax(1, keepdim=True) > CHANGE
            loss = self._weighted(error, changed) + self.config.commitment_weight * at_least_float32(
                quantized.commitment_loss
            )
            nmse = error.detach().mean() / self.config.data_variance
            usage = codebook_usage(quantized.codes, self.config.n_codes)
            parts.append({"loss": loss, "nmse": nmse, "commitment": quantized.commitment_loss.detach(), **usage})
            state = _next(state, _bytes(picture.detach()))
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}, state

    def _weighted(self, error: Tensor, changed: Tensor) -> Tensor:
        """The mean of squared errors (b, c, h, w) over the data's variance. Changed and worst pixels count more.

        With a plain mean, losing a small object would hardly change the loss.
        """
        weights = (1 + self.config.motion_loss_weight * changed).to(error.dtype)
        mean = (error * weights / batch_mean(weights.mean())).mean()
        pixels = error.mean(1).flatten(1)
        worst = pixels.topk(max(1, int(N_WORST * pixels.shape[1])), dim=1).values.mean()
        return (mean + self.config.worst_pixels_weight * worst) / self.config.data_variance

    def _embed(self, actions: Tensor) -> Tensor:
        """(b, a) -> (b, ACTION_DIM)."""
        if not self.config.action_dim:
            actions = actions.new_zeros(len(actions), 1)
        return self.action((actions / self.action_scale).to(self.pre_vq_conv.weight.dtype))

    def _encode(self, frame: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """Features (b, H, W, g*d) of a frame (b, h, w, c)."""
        truth, past = (to_float(x, self.pre_vq_conv.weight.dtype).movedim(-1, -3) for x in (frame, state))
        last, anchor, embedded = past[:, LAST], past[:, ANCHOR], self._embed(action)
        x = self.encoder(torch.cat([truth, last, truth - last, anchor], 1), embedded)[-1]
        return self.pre_vq_conv(self.encoder_out(x, embedded)).movedim(1, -1)

    def _compose(self, features: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """The next picture (b, c, h, w), float, from the vectors (b, H, W, g*d) of its codes."""
        dtype = self.post_vq_conv.weight.dtype
        past, embedded = to_float(state, dtype).movedim(-1, -3), self._embed(action)
        *skips, x = self.past(past.flatten(1, 2), embedded)
        x = x + self.post_vq_conv(features.to(dtype).movedim(-1, 1))
        for block in self.decoder_in:
            x = block(x, embedded)
        out = self.decoder(x, skips, embedded)
        out = at_least_float32(out)  # bfloat16 has 8 significant bits, which is too few for pixels and flow
        flow, masks, new = out.split((2, 3, self.config.channels), dim=1)
        flow, masks = self.config.max_flow * torch.tanh(flow / self.config.max_flow), masks.softmax(1)
        last, anchor = (to_float(state[:, i], out.dtype).movedim(-1, 1) for i in (LAST, ANCHOR))
        moved = _warp(last, flow, self.grid.to(out.dtype))
        return masks[:, :1] * moved + masks[:, 1:2] * anchor + masks[:, 2:] * new

    def _advance(self, codes: Tensor, action: Tensor, memory: Memory) -> Tensor:
        """The next frame (b, h, w, c), uint8, which becomes the last one of the state."""
        state = memory[self]
        frame = _bytes(self._compose(self.quantizer.embed(codes), state, action))
        memory[self] = _next(state, frame)
        return frame

    def _check_frames(self, frames: Tensor) -> None:
        wanted = (*self.config.frame_size, self.config.channels)
        if frames.dim() != 5 or tuple(frames.shape[2:]) != wanted:
            raise UserError(
                f"this VQ-VAE takes frames of (batch, time, {', '.join(map(str, wanted))}), not {tuple(frames.shape)}; "
                "record or resize the data to that shape, or train a VQ-VAE for this one"
            )

    def _check_actions(self, like: Tensor, actions: Tensor | None) -> Tensor:
        """The actions (b, t, a) of frames or codes (b, t, ...); for data without actions empty ones."""
        if not self.config.action_dim:
            return like.new_zeros(*like.shape[:2], 0)
        wanted = (*like.shape[:2], self.config.action_dim)
        if actions is None or tuple(actions.shape) != wanted:
            given = "none" if actions is None else str(tuple(actions.shape))
            raise UserError(
                f"this VQ-VAE takes encoded actions of shape {wanted}, not {given}; give the action that led into each "
                "frame"
            )
        return actions


def _bytes(picture: Tensor) -> Tensor:
    """[-0.5, 0.5] (b, c, h, w) -> uint8 (b, h, w, c)."""
    return to_uint8(picture).movedim(1, -1)


def _next(state: Tensor, frame: Tensor) -> Tensor:
    """The state after a frame (b, h, w, c): the frame comes first, earlier ones move back by one, the anchor stays."""
    return torch.cat([frame[:, None], state[:, : ANCHOR - 1], state[:, ANCHOR:]], 1)


def _warp(picture: Tensor, flow: Tensor, grid: Tensor) -> Tensor:
    """A picture (b, c, h, w) whose pixel at (y, x) is taken from (y, x) + flow (b, 2, h, w), in columns and rows."""
    height, width = picture.shape[-2:]
    size = flow.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    places = (grid + flow.movedim(1, -1)) / size * 2 - 1
    return F.grid_sample(picture, places, mode="bicubic", padding_mode="border", align_corners=True)
