"""Metrics of one row of an ablation, on held-out clips that are the same for all rows.

    NMSE, PSNR                 of reconstructions
    reconstructions_real       Frechet distance; R-FVD in the paper
    samples_real               FVD
    samples_reconstructions    FVD*
    bits/code                  bits/dim in the paper
    bits/frame                 bits of all codes of one video frame, to compare rows with different numbers of codes
    perplexity                 of the code usage; low if few codes are used
    mean picture               NMSE of the mean frame, repeated. A VQ-VAE that is no better has collapsed, and
                               distances from its reconstructions are meaningless

Reconstructions are deterministic, so their distance is one value. Distances of samples have one value per trial.
Conditioning frames are sampled, not copied, as in rollout/fvd.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollout.clip_sources import ClipSource
from rollout.distances import distances
from rollout.heldout import load_models, real_clips, sample_videos
from rollout.provenance import model_digests
from worldmodel.data.clips import Clips
from worldmodel.data.opening import open_store
from worldmodel.data.prior_dataset import bits_per_code
from worldmodel.metrics.features import Features
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.metrics.interval import bootstrap
from worldmodel.metrics.protocol import Protocol
from worldmodel.models.loading import AnyVQVAE, load_vqvae
from worldmodel.models.quantizer import codebook_usage

FEATURE_BATCH_SIZE = 8
"""Clips per batch of the feature network."""


@dataclass(frozen=True)
class Measurement:
    """The evaluation protocol that all rows share."""

    data: str
    """Store of frames."""
    clip_stride: int
    """Frames between the starts of consecutive clips, as in the store of codes."""
    protocol: Protocol
    features: Features
    batch_size: int
    device: str


def score_vqvae(how: Measurement, run: Path) -> dict[str, Any]:
    """Metrics of a run's VQ-VAE alone."""
    vqvae, split = load_vqvae(run / "vqvae").to(how.device), how.protocol.split
    source = Clips(open_store(how.data), split, vqvae.config.n_frames, ["frames"], align=how.clip_stride)
    clips = source.fixed_sample(how.protocol.n_clips)
    return _score_clips(how, run, vqvae, clips["frames"], clips["episode"])


def score_prior(how: Measurement, run: Path, name: str) -> dict[str, Any]:
    """Metrics of a run's VQ-VAE and of its prior of that name."""
    vqvae, prior = load_models(run, name, how.device)
    truth = real_clips(run, prior, vqvae.config.stride[0], how.protocol.n_clips, how.protocol.split, how.data)
    samples = lambda k: sample_videos(vqvae, prior, truth.batch, k, batch_size=how.batch_size)  # noqa: E731
    result = _score_clips(how, run, vqvae, truth.frames, truth.episode, samples)
    bits = bits_per_code(prior, truth.batch, batch_size=how.batch_size)
    per_frame = math.prod(vqvae.config.latent_shape) * vqvae.config.n_codebooks / vqvae.config.n_frames
    for figure, values in (("bits/code", bits), ("bits/frame", bits * per_frame)):
        result["figures"][figure] = [float(values.mean())]
        result["intervals"][figure] = bootstrap(values, truth.episode).to_json()
    result["conditioning frames"] = "regenerated" if prior.config.n_cond_frames else "none"
    result["parameters"]["prior"] = sum(p.numel() for p in prior.parameters())
    return result


def _score_clips(
    how: Measurement,
    run: Path,
    vqvae: AnyVQVAE,
    real: np.ndarray,
    episode: np.ndarray,
    samples: Callable[[int], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Metrics on real clips (n, t, h, w, c) of the given episodes; `samples`, if any, makes clips from a seed."""
    with torch.no_grad():
        parts = torch.from_numpy(real).split(how.batch_size)
        pairs = [vqvae.reconstruct(part.to(how.device)) for part in parts]
    codes, decoded = torch.cat([c for c, _ in pairs]), torch.cat([d.cpu() for _, d in pairs]).numpy()
    source = ClipSource(
        draw=lambda k: (samples and samples(k), real),
        reconstruct=lambda trial, clips: decoded,
        data=open_store(how.data).env_spec.name,
        digests=model_digests(run),
        seeds=list(range(how.protocol.n_trials)),
    )
    trials = how.protocol if samples else how.protocol.with_changes(n_trials=1)
    found = distances(FEATURE_BATCH_SIZE, trials, how.features, source)
    mean = np.broadcast_to(real.mean((0, 1)).round().astype(np.uint8), real.shape)
    errors = {"NMSE": nmse(decoded, real, vqvae.config.data_variance).mean(1), "PSNR": psnr(decoded, real).mean(1)}
    figures = {name: [float(values.mean())] for name, values in errors.items()}
    figures["perplexity"] = [float(codebook_usage(codes, vqvae.config.n_codes)["perplexity"])]
    figures["mean picture"] = [float(nmse(mean, real, vqvae.config.data_variance).mean())]
    figures |= {name: list(t.values[:1] if name == "reconstructions_real" else t.values) for name, t in found.items()}
    return {
        "figures": figures,
        "intervals": {name: bootstrap(values, episode).to_json() for name, values in errors.items()},
        "parameters": {"vqvae": sum(p.numel() for p in vqvae.parameters())},
        "data": source.data,
        "protocol": trials.to_json(),
        "features": how.features.to_json(),
        "sample_seeds": source.seeds if samples else [],
    }
