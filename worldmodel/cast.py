"""Casting a dream's models to bfloat16, and what that is tried by before it is done.

Cast is what has its part in every step: the prior, and the VQ-VAE's way from codes to a picture. Codes and outcomes
stay exact. A trial is of made-up codes, always the same ones, and of copies of the models, so that it is over before a
dream has any lanes, and the precision of a dream is that of its machine, whatever it begins with.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from worldmodel.layers import Memory
from worldmodel.prior import Prior
from worldmodel.rates import Precision
from worldmodel.sampling import Sampling, Score, draw_codes
from worldmodel.vqvae import VQVAE


class Given(Sampling):
    """Draws the codes that stand where random numbers would."""

    def draw(self, logits: Tensor, noise: Tensor, share: Tensor | None = None) -> Tensor:
        return noise


def cast(vqvae: VQVAE, prior: Prior) -> None:
    """To bfloat16, in place."""
    for part in (prior, vqvae.from_code, vqvae.decoder, vqvae.up):
        part.bfloat16()


@torch.no_grad()
def trial(vqvae: VQVAE, prior: Prior, precision: Precision) -> dict[str, Tensor]:
    """What both make of a frame of given codes after others, streamed: how unlikely it is, and its picture."""
    if precision == "bfloat16":
        vqvae, prior = copy.deepcopy((vqvae, prior))
        cast(vqvae, prior)
    c, generator, like = prior.config, torch.Generator().manual_seed(0), prior.start
    size = (2, c.reach + 1, *c.latent[1:], c.books)
    codes = torch.randint(c.codes, size, generator=generator).to(like.device)
    condition = torch.rand(*size[:2], c.condition_dim, generator=generator).to(like)
    cache, memory, score = prior.prefill(codes[:, :-1], condition[:, :-1]), Memory(), Score(codes)
    shared, given = prior.begin(cache, condition[:, -1]), prior.by_position(codes[:, -1:]).flatten(1)
    draw_codes(prior, cache, shared, given, Given(), score)
    vqvae.decode(codes[:, :-1], memory)
    picture = vqvae.decode(codes[:, -1:], memory)
    return {"nats a code": -score.likelihood / c.frame, "picture": picture.float()}
