"""Frechet distances between samples, reconstructions and real clips, trial by trial."""

from __future__ import annotations

import numpy as np

from rollout.clip_sources import ClipSource
from worldmodel.metrics.features import Features
from worldmodel.metrics.frechet import Gaussian, frechet_distance_of_gaussians
from worldmodel.metrics.protocol import Protocol, Trials
from worldmodel.utils.errors import UserError
from worldmodel.utils.progress import Progress

COMPARISONS = {
    "samples_real": ("FVD", "samples against real"),
    "reconstructions_real": ("R-FVD", "reconstructions against real"),
    "samples_reconstructions": ("FVD*", "samples against reconstructions"),
}


def distances(feature_batch_size: int, protocol: Protocol, features: Features, source: ClipSource) -> dict[str, Trials]:
    """The distances of the three comparisons, per trial; comparisons with missing clips are left out."""
    values: dict[str, list[float]] = {name: [] for name in COMPARISONS}
    last: np.ndarray | None = None
    with Progress(total=protocol.n_trials * protocol.samples_per_clip, unit=" sets", desc="clips") as bar:
        for trial in range(protocol.n_trials):
            fakes, real = sample_features(feature_batch_size, protocol, features, source, trial, bar)
            normal = {"samples": Gaussian.fit(fakes)} if fakes is not None else {}
            assert real is not None
            if last is None or not np.array_equal(real, last):  # else reuse their features
                known = {"real": Gaussian.fit(features(real, feature_batch_size))}
                if source.reconstruct:
                    decoded = source.reconstruct(trial, real)
                    protocol.check(decoded, "reconstructions")
                    known["reconstructions"] = Gaussian.fit(features(decoded, feature_batch_size))
                last = real
            normal |= known
            for name in COMPARISONS:
                a, b = name.split("_")
                if a in normal and b in normal:
                    values[name].append(frechet_distance_of_gaussians(normal[a], normal[b]))
    return {name: Trials(tuple(found)) for name, found in values.items() if found}


def sample_features(
    feature_batch_size: int, protocol: Protocol, features: Features, source: ClipSource, trial: int, bar: Progress
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Features of all samples of a trial, and its real clips; None for what is missing."""
    found, first = [], None
    for j in range(protocol.samples_per_clip):
        samples, real = source.draw(trial * protocol.samples_per_clip + j)
        for clips, what in ((samples, "samples"), (real, "the real clips")):
            if clips is not None:
                protocol.check(clips, what)
        first = real if j == 0 else first
        if first is not None and (real is None or not np.array_equal(first, real)):
            raise UserError(
                f"protocol {protocol.name} takes several samples of the same clips, but the clips differ between the "
                "samples; give samples of the same clips"
            )
        if samples is not None:
            found.append(features(samples, feature_batch_size))
        bar.update()
    return (np.concatenate(found) if found else None), first
