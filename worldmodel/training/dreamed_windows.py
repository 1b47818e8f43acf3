"""Dreamed sequences with recorded outcomes, to train an outcome model on the kind of frames that it gets in a dream.

Dreamed frames are less sharp than recorded ones, and a policy learns to exploit whatever the outcome model mistakes for
a medkit. So the prior continues real contexts under the recorded actions, and the model learns what really happened
after them. A dream may diverge from the recording, and a longer one diverges more. `steps` should be small enough that
this is rare.

Dimensions: n sequences of context + steps latent frames.
"""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.data.clips import RECONSTRUCTION, n_given_rows, read_state, read_windows_clamped
from worldmodel.data.prior_dataset import PriorBatch
from worldmodel.data.store import Store
from worldmodel.data.zarr_format import SPLITS
from worldmodel.generation.generate import continue_clips
from worldmodel.models.loading import AnyVQVAE
from worldmodel.models.prior import Prior
from worldmodel.training.encoding import Rows
from worldmodel.training.step import autocast
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress

LANES = {"cpu": 64, "cuda": 512}
"""Sequences that are dreamed at a time on a device."""


def draw_windows(store: Store, split: str, context: int, length: int, n: int, rng: np.random.Generator) -> Rows:
    """Draw rows to continue from: all rows of a split are equally likely, including those shortly before an end.

    Args:
        store: Store of codes.
        split: "train", "valid" or "test".
        context: Latent frames that are given.
        length: Latent frames of a sequence.
        n: Number of sequences.
        rng: Random numbers.

    Returns:
        "row", "start" and "stop" (n,): the first row, how many rows of its episode are before it, and the row after the
        last one of its episode; "mask" (n, length): rows that are inside the episode.

    Raises:
        UserError: If no episode is long enough.
    """
    first = n_given_rows(store)
    bounds = np.array([store.episode_bounds(i) for i in store.episode_indices(split)])
    starts = np.maximum(bounds[:, 1] - bounds[:, 0] - first - context, 0)
    if not starts.any():
        raise UserError(
            f"no episode in split {split!r} of {store.path} has more than {context} latent frames to dream from; "
            "record longer episodes, or give --n-dreams 0"
        )
    at = rng.integers(starts.sum(), size=n)
    episode = np.searchsorted(starts.cumsum(), at, side="right")
    start = first + at - (starts.cumsum() - starts)[episode]
    row, stop = bounds[episode, 0] + start, bounds[episode, 1]
    return {"row": row, "start": start, "stop": stop, "mask": row[:, None] + np.arange(length) < stop[:, None]}


class DreamedWindows:
    """n dreamed sequences in memory: 12 kB for each latent frame of 64 x 64 pixels."""

    def __init__(
        self,
        vqvae: AnyVQVAE,
        prior: Prior,
        store: Store,
        split: str,
        n: int,
        context: int,
        steps: int,
        seed: int = 0,
        precision: Precision = "float32",
    ) -> None:
        """Dream the sequences.

        Args:
            vqvae: The VQ-VAE.
            prior: The prior.
            store: Store of codes with outcomes.
            split: "train", "valid" or "test".
            n: Number of sequences.
            context: Latent frames that are given.
            steps: Latent frames that are dreamed.
            seed: Seed of the sequences and of the dreams.
            precision: Precision of the models.

        Raises:
            UserError: If no episode is long enough.
        """
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        length, device = context + steps, prior.start_token.device
        drawn = draw_windows(store, split, context, length, n, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        self.rows = {"mask": drawn["mask"]}
        for name in ("codes", "condition", "reward", "done", "variables"):
            self.rows[name] = read_windows_clamped(store, name, drawn["row"], length, drawn["stop"])
        self.rows["codes"] = self.rows["codes"].astype(np.int32)
        if RECONSTRUCTION in store.array_names:
            state = read_state(store, drawn["row"], drawn["start"], vqvae.config.past_frames)
            self.rows["images"] = np.empty((n, length, *state.shape[2:]), np.uint8)
        lanes = LANES[device.type]
        for at in Progress(range(0, n, lanes), desc=f"dreaming from {split}", unit="batch"):
            part = slice(at, at + lanes)
            batch = PriorBatch(
                torch.from_numpy(self.rows["codes"][part]).long().to(device),
                torch.from_numpy(self.rows["condition"][part]).to(device),
                cond_frames=None,
                state=torch.from_numpy(state[part]).to(device) if "images" in self.rows else None,
            )
            with autocast(device, precision):
                codes, frames = continue_clips(vqvae, prior, batch, context, length, generator)
            self.rows["codes"][part] = codes.cpu().numpy()
            if "images" in self.rows:
                self.rows["images"][part] = frames.cpu().numpy()

    def sample(self, rng: np.random.Generator, n: int, length: int) -> Rows:
        """Sample n sequences, padded to a length; "mask" marks the rows that count."""
        at = rng.integers(len(self.rows["mask"]), size=n)
        return {name: fit_length(rows[at], length) for name, rows in self.rows.items()}


def fit_length(rows: np.ndarray, length: int) -> np.ndarray:
    """Cut sequences (n, t, ...) to a length, or pad them with zeros."""
    missing = max(0, length - rows.shape[1])
    return np.pad(rows[:, :length], [(0, 0), (0, missing), *[(0, 0)] * (rows.ndim - 2)])
