"""Casting a dream's models to bfloat16, and the trial that decides whether to do it.

The parts that run in every step are cast: the prior, and the VQ-VAE's decoder. The encoder and the outcome model stay
in float32. The trial runs copies of the models on fixed random codes before the dream has any lanes. The result
therefore depends on the machine and the models, not on the context that a dream starts from.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from worldmodel.generation.sampling import FrameScore, SamplingConfig, sample_codes
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE
from worldmodel.models.pixels import to_uint8
from worldmodel.models.prior import Prior
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.utils.hardware import Precision


class GivenCodes(SamplingConfig):
    """Takes its codes from the argument for random numbers, so that given codes can be scored."""

    def sample(self, logits: Tensor, noise: Tensor, probs: Tensor | None = None) -> Tensor:
        return noise


def cast_to_bfloat16(vqvae: AnyVQVAE, prior: Prior) -> None:
    """Cast the prior and the VQ-VAE's decoder to bfloat16, in place."""
    for part in (prior, *vqvae.dream_parts()):
        part.bfloat16()


@torch.no_grad()
def trial_outputs(vqvae: AnyVQVAE, prior: Prior, precision: Precision) -> dict[str, Tensor]:
    """Stream fixed random codes through prior and decoder, to compare one precision with another.

    Returns:
        For the last frame, by the names in `hardware.TOLERANCE`: the negative log-likelihood per code of each lane, and
        the decoded image.
    """
    if precision == "bfloat16":
        vqvae, prior = copy.deepcopy((vqvae, prior))
        cast_to_bfloat16(vqvae, prior)
    c, generator, like = prior.config, torch.Generator().manual_seed(0), prior.start_token
    size = (2, c.attention_frames + 1, *c.latent_shape[1:], c.n_codebooks)
    codes = torch.randint(c.n_codes, size, generator=generator).to(like.device)
    condition = torch.rand(*size[:2], c.condition_dim, generator=generator).to(like)
    memory, score, actions, features = Memory(), FrameScore(codes), condition.float(), None
    if isinstance(vqvae, RecurrentVQVAE):
        pictures = torch.randint(256, (2, *vqvae.config.frame_size, vqvae.config.channels), generator=generator)
        memory[vqvae] = vqvae.start(pictures.to(like.device, torch.uint8))
    before = memory.get(vqvae)
    videos = [to_uint8(vqvae.decode(codes[:, :-1], memory, actions[:, :-1]))]
    picture = vqvae.decode(codes[:, -1:], memory, actions[:, -1:])
    if prior.config.image_input:
        assert before is not None
        features = prior.encode_images(torch.cat([before[:, :1], *videos], 1))
    past, now = (None, None) if features is None else (features[:, :-1], features[:, -1:])
    cache = prior.prefill(codes[:, :-1], condition[:, :-1], features=past)
    context, given = prior.begin_frame(cache, condition[:, -1], now), prior.group_codes(codes[:, -1:]).flatten(1)
    sample_codes(prior, cache, context, given, GivenCodes(), score)
    return {"nats per code": -score.log_likelihood / c.codes_per_frame, "picture": picture.float()}
