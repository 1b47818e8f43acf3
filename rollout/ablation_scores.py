"""The figures of one row of an ablation: what its VQ-VAE and its prior make of the same held-out clips.

    NMSE, PSNR                 of reconstructions
    reconstructions_real       Frechet distance; in the paper R-FVD
    samples_real               FVD
    samples_reconstructions    FVD*
    bits/code                  the paper's bits/dim
    bits/frame                 of all codes of one frame of the video: compares where rows have other numbers of codes
    perplexity                 of the codes' use, by which a codebook that hardly any clip depends on is seen
    mean picture               NMSE of the mean of all these frames, held still. A VQ-VAE that is no better has
                               collapsed: distances from its reconstructions mean nothing

Reconstructions are not random, so their distance is one value; that of samples is one of each trial. Conditioning
frames, where the prior has any, are drawn anew and not copied, as rollout/fvd.py does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollout import fvd
from rollout.provenance import models
from rollout.sample import draw, load, real_clips
from rollout.sources import Source
from worldmodel.clips import Clips
from worldmodel.codebook import usage
from worldmodel.given import Given, features
from worldmodel.metrics.features import Features
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.metrics.interval import bootstrap
from worldmodel.metrics.protocol import Protocol
from worldmodel.models import load_vqvae
from worldmodel.prior import Prior
from worldmodel.store import Store
from worldmodel.vqvae import VQVAE, to_uint8


@dataclass(frozen=True)
class Ruler:
    """By what all rows are measured."""

    data: str
    """Store of frames."""
    every: int
    """Clips begin at every so many frames of an episode, as those of codes do."""
    protocol: Protocol
    features: Features
    batch: int
    device: str


def score_vqvae(ruler: Ruler, run: Path) -> dict[str, Any]:
    """Of a run's VQ-VAE alone; where clips do not overlap, on those that its prior would be measured on."""
    vqvae, split = load_vqvae(run / "vqvae").to(ruler.device), ruler.protocol.split
    source = Clips(Store(ruler.data), split, vqvae.config.frames, ["frames"], align=ruler.every)
    clips = source.fixed(ruler.protocol.clips)
    return _score(ruler, run, vqvae, clips["frames"], clips["episode"])


def score_prior(ruler: Ruler, run: Path, name: str) -> dict[str, Any]:
    """Of a run's VQ-VAE and of its prior of that name."""
    vqvae, prior = load(run, name, ruler.device)
    truth = real_clips(run, prior, vqvae.config.stride[0], ruler.protocol.clips, ruler.protocol.split, ruler.data)
    samples = lambda k: draw(vqvae, prior, truth.given, k, batch=ruler.batch)  # noqa: E731
    result = _score(ruler, run, vqvae, truth.frames, truth.episode, samples)
    bits = bits_per_code(prior, truth.given, ruler)
    per_frame = math.prod(vqvae.config.latent) * vqvae.config.books / vqvae.config.frames
    for figure, values in (("bits/code", bits), ("bits/frame", bits * per_frame)):
        result["figures"][figure] = [float(values.mean())]
        result["intervals"][figure] = bootstrap(values, truth.episode).to_json()
    result["conditioning frames"] = "regenerated" if prior.config.seen else "none"
    result["parameters"]["prior"] = sum(p.numel() for p in prior.parameters())
    return result


@torch.no_grad()
def bits_per_code(prior: Prior, given: Given, ruler: Ruler) -> np.ndarray:
    """(n,) of clips under their own conditions."""
    nats = []
    for part in torch.arange(len(given.codes)).split(ruler.batch):
        one = given[part].to(ruler.device)
        nats.append(prior.loss(one.codes, one.condition, features(prior, one)).mean(1).cpu())
    return torch.cat(nats).double().numpy() / math.log(2)


def _score(
    ruler: Ruler,
    run: Path,
    vqvae: VQVAE,
    real: np.ndarray,
    episode: np.ndarray,
    samples: Callable[[int], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Of real clips (n, t, h, w, c) of those episodes and, if there are any, of samples under a seed."""
    flags = fvd.Args(run=run, batch=ruler.batch, device=ruler.device)
    with torch.no_grad():
        codes = torch.cat([vqvae.encode(p.to(ruler.device)) for p in torch.from_numpy(real).split(ruler.batch)])
        decoded = torch.cat([to_uint8(vqvae.decode(c)).cpu() for c in codes.split(ruler.batch)]).numpy()
    source = Source(
        draw=lambda k: (samples and samples(k), real),
        reconstruct=lambda trial, clips: decoded,
        data=Store(ruler.data).world.name,
        made_of=models(run),
        seeds=list(range(ruler.protocol.trials)),
    )
    trials = ruler.protocol if samples else ruler.protocol.altered(trials=1)
    found = fvd.distances(flags, trials, ruler.features, source)
    mean = np.broadcast_to(real.mean((0, 1)).round().astype(np.uint8), real.shape)
    errors = {"NMSE": nmse(decoded, real, vqvae.config.variance).mean(1), "PSNR": psnr(decoded, real).mean(1)}
    figures = {name: [float(values.mean())] for name, values in errors.items()}
    figures["perplexity"] = [float(usage(codes, vqvae.config.codes)["perplexity"])]
    figures["mean picture"] = [float(nmse(mean, real, vqvae.config.variance).mean())]
    figures |= {name: list(t.values[:1] if name == "reconstructions_real" else t.values) for name, t in found.items()}
    return {
        "figures": figures,
        "intervals": {name: bootstrap(values, episode).to_json() for name, values in errors.items()},
        "parameters": {"vqvae": sum(p.numel() for p in vqvae.parameters())},
        "data": source.data,
        "protocol": trials.to_json(),
        "features": ruler.features.to_json(),
        "sample_seeds": source.seeds if samples else [],
    }
