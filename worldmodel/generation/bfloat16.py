"""Casting a dream's models to bfloat16, and what that is tried by before it is done.

Cast is what has its part in every step: the prior, and the VQ-VAE's way from codes to a picture. Codes and outcomes
stay exact. A trial is of made-up codes, always the same ones, and of copies of the models, so that it is over before a
dream has any lanes, and the precision of a dream is that of its machine, whatever it begins with.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from worldmodel.generation.sampling import FrameScore, SamplingConfig, sample_codes
from worldmodel.models.layers import Memory
from worldmodel.models.prior import Prior
from worldmodel.models.vqvae import VQVAE
from worldmodel.utils.hardware import Precision


class GivenCodes(SamplingConfig):
    """Draws the codes that stand where random numbers would."""

    def sample(self, logits: Tensor, noise: Tensor, share: Tensor | None = None) -> Tensor:
        return noise


def cast_to_bfloat16(vqvae: VQVAE, prior: Prior) -> None:
    """To bfloat16, in place."""
    for part in (prior, vqvae.post_vq_conv, vqvae.decoder, vqvae.upsample):
        part.bfloat16()


@torch.no_grad()
def trial_outputs(vqvae: VQVAE, prior: Prior, precision: Precision) -> dict[str, Tensor]:
    """What both make of a frame of given codes after others, streamed: how unlikely it is, and its picture."""
    if precision == "bfloat16":
        vqvae, prior = copy.deepcopy((vqvae, prior))
        cast_to_bfloat16(vqvae, prior)
    c, generator, like = prior.config, torch.Generator().manual_seed(0), prior.start_token
    size = (2, c.attention_frames + 1, *c.latent_shape[1:], c.n_codebooks)
    codes = torch.randint(c.n_codes, size, generator=generator).to(like.device)
    condition = torch.rand(*size[:2], c.condition_dim, generator=generator).to(like)
    cache, memory, score = prior.prefill(codes[:, :-1], condition[:, :-1]), Memory(), FrameScore(codes)
    context, given = prior.begin_frame(cache, condition[:, -1]), prior.group_codes(codes[:, -1:]).flatten(1)
    sample_codes(prior, cache, context, given, GivenCodes(), score)
    vqvae.decode(codes[:, :-1], memory)
    picture = vqvae.decode(codes[:, -1:], memory)
    return {"nats a code": -score.log_likelihood / c.codes_per_frame, "picture": picture.float()}
