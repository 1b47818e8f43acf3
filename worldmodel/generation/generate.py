"""Generating a video latent frame by latent frame, from nothing or from given frames.

Decoding orders with few passes sample by inversion, as dreams do (worldmodel/generation/sampling.py). Raster order
needs one pass for each position, so it uses predictive sampling (worldmodel/generation/predictive_sampling.py).

A prior that takes images needs each latent frame decoded before it can predict the next one; then `generate` decodes
as it samples (`Decoder`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.data.prior_dataset import PriorBatch, batch_features
from worldmodel.generation.predictive_sampling import gumbel_noise, predictive_sample
from worldmodel.generation.sampling import SamplingConfig, sample_codes
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE
from worldmodel.models.pixels import to_uint8
from worldmodel.models.prior import Prior
from worldmodel.models.recurrent_vqvae import LAST


def default_chunk_size(lanes: int, dtype: torch.dtype) -> int:
    """A chunk size for a number of lanes: a pass over the chunk takes little longer than one over a single position."""
    return min(32, max(4, (128 if dtype == torch.float32 else 256) // lanes))


def actions_of(vqvae: AnyVQVAE, condition: Tensor | None) -> Tensor | None:
    """The part of conditions (b, t, c) that a recurrent VQ-VAE takes: the actions, without the class."""
    return None if condition is None else condition[..., : vqvae.config.action_dim]


class Decoder:
    """Decodes latent frames as they are sampled, for a prior that takes the image before each of them."""

    def __init__(self, vqvae: AnyVQVAE, state: Tensor) -> None:
        """Start from the state (b, p, H, W, channels) of a recurrent VQ-VAE."""
        self.vqvae, self.memory, self.frames = vqvae, Memory({vqvae: state}), list[Tensor]()

    def decode(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """Decode the next latent frames (b, t, h, w, g); returns the image before each (b, t, H, W, channels)."""
        before = self.last_image()
        self.frames.append(to_uint8(self.vqvae.decode(codes, self.memory, actions_of(self.vqvae, condition))))
        return torch.cat([before, self.frames[-1][:, :-1]], dim=1)

    def last_image(self) -> Tensor:
        """The image (b, 1, H, W, channels) before the next latent frame."""
        return self.memory[self.vqvae][:, LAST, None]


@torch.no_grad()
def generate(
    prior: Prior,
    codes: Tensor,
    n_frames: int,
    generator: torch.Generator,
    condition: Tensor | None = None,
    features: Tensor | None = None,
    sampling: SamplingConfig | None = None,
    chunk_size: int | None = None,
    decoder: Decoder | None = None,
) -> Tensor:
    """Continue `codes` up to `n_frames` latent frames.

    Args:
        prior: The model to sample from.
        codes: Given codes (b, t, h, w, g); t = 0 starts a video from nothing.
        n_frames: Latent frames of the result, the given ones included.
        generator: A CPU generator.
        condition: (b, n_frames, c) for a prior conditioned frame by frame, (b, c) for one conditioned on the clip.
        features: `Prior.encode_cond_frames` of the conditioning frames, if the prior has any.
        sampling: Temperature and truncation; by default the model's own distribution.
        chunk_size: Raster order only: positions that predictive sampling predicts in one pass, by default
            `default_chunk_size`. With 1 the codes are sampled one by one, by inversion.
        decoder: Decodes the frames for a prior that takes images; in place of `features`.

    Returns:
        Codes (b, n_frames, h, w, g), the given ones first.

    Raises:
        UserError: If codes, condition or features do not fit the prior, or a paper-mode prior cannot reach `n_frames`.
    """
    per_frame, n_given, sampling = prior.config.conditioning == "frame", codes.shape[1], sampling or SamplingConfig()
    at = lambda t: condition[:, t] if per_frame and condition is not None else condition  # noqa: E731
    if decoder is not None and n_given:
        features = prior.encode_images(decoder.decode(codes, at(slice(n_given))))
    cache = prior.prefill(codes, at(slice(n_given)), features=features) if n_given else prior.empty_cache(len(codes))
    chunk_size = chunk_size or default_chunk_size(len(codes), prior.start_token.dtype)
    if chunk_size > 1:  # `empty_cache` may choose float32, which is faster only for one code a pass
        cache.kv = [pair.to(prior.start_token.dtype) for pair in cache.kv]
    for t in range(n_given, n_frames):
        if decoder is not None:
            features = prior.encode_images(decoder.last_image())
        context = prior.begin_frame(cache, at(t), features)
        if prior.config.decoding_order == "raster" and chunk_size > 1:
            noise = gumbel_noise((len(codes), prior.config.codes_per_frame, prior.config.n_codes), generator)
            guess = codes[:, -1:] if t else None
            new = predictive_sample(prior, cache, context, noise.to(codes.device), sampling, chunk_size, guess)
        else:
            noise = torch.rand(len(codes), prior.config.codes_per_frame, generator=generator)
            new = sample_codes(prior, cache, context, noise.to(codes.device), sampling)
        prior.finish_frame(cache)
        codes = torch.cat([codes, new], dim=1)
        if decoder is not None:
            decoder.decode(new, at(slice(t, t + 1)))
    return codes


@torch.no_grad()
def decode_clips(vqvae: AnyVQVAE, batch: PriorBatch, codes: Tensor | None = None) -> Tensor:
    """Decode clips of codes.

    Args:
        vqvae: The VQ-VAE of the codes.
        batch: The clips, with what the decoder needs besides codes: actions, and the state before the first code.
        codes: Codes (b, t, h, w, g); by default those of the batch.

    Returns:
        Frames (b, t, H, W, channels) uint8.
    """
    memory = None if batch.state is None else Memory({vqvae: batch.state})
    codes = batch.codes if codes is None else codes
    return to_uint8(vqvae.decode(codes, memory, actions_of(vqvae, batch.condition)))


@torch.no_grad()
def continue_clips(
    vqvae: AnyVQVAE,
    prior: Prior,
    batch: PriorBatch,
    n_given: int,
    n_frames: int,
    generator: torch.Generator,
    sampling: SamplingConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Continue the first `n_given` latent frames of a batch up to `n_frames`; arguments as in `generate`.

    Returns:
        Codes (b, n_frames, h, w, g) and frames (b, t, H, W, channels) uint8, the given ones first.
    """
    given, condition = batch.codes[:, :n_given], batch.condition
    if not prior.config.image_input:
        codes = generate(prior, given, n_frames, generator, condition, batch_features(prior, batch), sampling)
        return codes, decode_clips(vqvae, batch, codes)
    assert batch.state is not None, "a prior that takes images reads codes of a recurrent VQ-VAE"
    decoder = Decoder(vqvae, batch.state)
    codes = generate(prior, given, n_frames, generator, condition, sampling=sampling, decoder=decoder)
    return codes, torch.cat(decoder.frames, dim=1)
