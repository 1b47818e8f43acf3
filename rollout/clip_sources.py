"""Sources of the clips for distances and scores: the models and store of a run, or files.

Files are .npy of uint8 (n, t, h, w, 3). Sample i continues clip i modulo the number of clips per trial. A file of real
clips or reconstructions has those of one trial, used in all trials, or those of all trials in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollout.heldout import make_sampler
from rollout.provenance import model_digests
from worldmodel.data.clips import Clips
from worldmodel.data.opening import open_store
from worldmodel.metrics.protocol import Protocol
from worldmodel.models.loading import load_vqvae
from worldmodel.utils.errors import UserError

ReconstructFn = Callable[[int, np.ndarray], np.ndarray]
"""Reconstructions for a trial number and its real clips (n, t, h, w, 3)."""


@dataclass(frozen=True)
class ClipSource:
    """A source of samples, real clips and reconstructions."""

    draw: Callable[[int], tuple[np.ndarray | None, np.ndarray | None]]
    """The k-th set of samples and the clips they continue, (n, t, h, w, 3) each; None for what is missing."""
    reconstruct: ReconstructFn | None
    """Makes reconstructions; None if there are none."""
    data: str
    digests: dict[str, Any]
    """Digests of models and files."""
    seeds: list[int]


def source_from_files(
    paths: dict[str, Path], protocol: Protocol, data: str = "", reconstruct: ReconstructFn | None = None
) -> ClipSource:
    """A source of clips in files.

    Args:
        paths: Files by kind: samples, real, reconstructions.
        protocol: Protocol that fixes the number of clips.
        data: Name of the data.
        reconstruct: Makes reconstructions if no file has them.

    Raises:
        UserError: A file cannot be read, or has the wrong number of clips.
    """
    n, trials = protocol.n_clips, protocol.n_trials
    files = {name: read_clips(path) for name, path in paths.items()}
    for name, clips in files.items():
        if name == "samples":
            wanted = [n * trials * protocol.samples_per_clip]
        else:
            wanted = sorted({n, n * trials}) if name == "real" else [len(files["real"])]
        if len(clips) not in wanted:
            raise UserError(
                f"protocol {protocol.name} takes {' or '.join(map(str, wanted))} {name}, but {paths[name]} has"
                f" {len(clips)}; give that many, or change --n-clips, --samples-per-clip or --n-trials"
            )

    def part(name: str, trial: int) -> np.ndarray:
        clips = files[name]
        return np.array(clips[trial * n : trial * n + n] if len(clips) > n else clips)

    return ClipSource(
        draw=lambda k: (part("samples", k), part("real", k // protocol.samples_per_clip) if "real" in files else None),
        reconstruct=(lambda trial, _: part("reconstructions", trial)) if "reconstructions" in files else reconstruct,
        data=data,
        digests={name: sha256(path) for name, path in paths.items()},
        seeds=[],
    )


def source_from_run(run: Path, protocol: Protocol, data: str, seed: int, device: str, batch_size: int) -> ClipSource:
    """A source of samples of a run's prior and the clips they continue; without a prior, clips alone."""
    store = open_store(run / "data.zarr")
    seeds = [seed + k for k in range(protocol.n_trials * protocol.samples_per_clip)]

    def real(seed: int) -> tuple[None, np.ndarray]:
        clips = Clips(store, protocol.split, protocol.n_frames, ["frames"], cache="off")
        return None, clips.fixed_sample(protocol.n_clips, seed)["frames"]

    draw: Callable[[int], tuple[np.ndarray | None, np.ndarray]] = real
    if (run / "prior").exists():
        draw = make_sampler(run, protocol.n_clips, protocol.n_cond_frames, device, batch_size, protocol.split)
    return ClipSource(
        draw=lambda k: draw(seeds[k]),
        reconstruct=make_reconstruct(run, device, batch_size),
        data=data or store.env_spec.name,
        digests=model_digests(run),
        seeds=seeds,
    )


def make_reconstruct(run: Path, device: str, batch_size: int) -> ReconstructFn:
    """A function that reconstructs clips with a run's VQ-VAE."""
    vqvae = load_vqvae(run / "vqvae").to(device)

    @torch.no_grad()
    def reconstruct(trial: int, clips: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(clips).split(batch_size)
        return torch.cat([vqvae.reconstruct(p.to(device))[1].cpu() for p in parts]).numpy()

    return reconstruct


def read_clips(path: Path) -> np.ndarray:
    """Open a .npy of clips as a memory map; `UserError` if it is not one."""
    try:
        clips = np.load(path, mmap_mode="r", allow_pickle=False)
        assert isinstance(clips, np.ndarray) and clips.ndim
        return clips
    except (ValueError, EOFError, AssertionError) as error:
        raise UserError(f"{path} is not a .npy file of clips ({error}); write it with numpy.save") from None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
