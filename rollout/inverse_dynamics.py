"""An inverse-dynamics model: a classifier of the action between two frames, trained on real frames only.

An action has one or more factors, each with a separate prediction: the factors of a MultiDiscrete space, or the numbers
of a Box. A number of a Box is binned into the lower, middle or upper third of its real values. If most of its values
are equal, such as a command that is rarely given, the thirds coincide, and the bins are that value and everything above
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import ActionSpec
from worldmodel.data.store import Store
from worldmodel.metrics.interval import MeanInterval, bootstrap_counts, percentile_interval
from worldmodel.models.pixels import to_float
from worldmodel.utils.progress import Progress

N_BINS = 3


@dataclass(frozen=True)
class ActionClassifier:
    """A trained classifier of actions."""

    model: nn.Module
    spec: ActionSpec
    bin_edges: np.ndarray | None = None
    """(2, numbers) upper bounds of the lower and the middle third of each number of a Box; None for other spaces."""


def factor_sizes(spec: ActionSpec) -> tuple[int, ...]:
    """Number of values of each factor."""
    return spec.nvec or (N_BINS,) * len(spec.low)


def bin_edges(store: Store) -> np.ndarray | None:
    """The bin edges (2, numbers) of a Box from the actions of the training split; None for other spaces."""
    if store.env_spec.action.kind != "Box":
        return None
    actions = np.concatenate(
        [store.read_episode(i)["action"][:-1] for i in store.episode_indices("train")]
    )  # the last row of an episode has no action
    return np.quantile(actions, [1 / 3, 2 / 3], axis=0)


def action_labels(spec: ActionSpec, actions: np.ndarray, cuts: np.ndarray | None = None) -> np.ndarray:
    """Actions (..., *spec.shape) -> classes (..., factors)."""
    if cuts is not None:
        return (actions > cuts[0]).astype(int) + (actions > cuts[1])
    return actions.reshape(*actions.shape[: actions.ndim - len(spec.shape)], -1).astype(int)


def classifier(outputs: int) -> nn.Module:
    """Two frames and their difference (n, 9, h, w) -> logits of the factors of the action between them."""
    return nn.Sequential(
        nn.Conv2d(9, 32, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 48, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(48, 64, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, outputs),
    )  # fmt: skip


def frame_pairs(before: np.ndarray, after: np.ndarray) -> Tensor:
    """uint8 frames (n, h, w, 3), twice -> (n, 9, h, w)."""
    a, b = (to_float(torch.from_numpy(x)).movedim(-1, 1) for x in (before, after))
    return torch.cat([a, b, b - a], dim=1)


def train_classifier(store: Store, steps: int, seed: int) -> ActionClassifier:
    """Train a classifier on real pairs of frames of the training split, with classes weighted equally."""
    spec, cuts = store.env_spec.action, bin_edges(store)
    torch.manual_seed(seed)
    clips, model = Clips(store, "train", 2, ["frames", "action"]), classifier(sum(factor_sizes(spec)))
    rng, optimizer = np.random.default_rng(seed), None
    for _ in Progress(range(steps), unit=" steps", desc="classifier"):
        batch = clips.sample(rng, 128)
        wanted = torch.from_numpy(action_labels(spec, batch["action"][:, 0], cuts))
        logits = model(frame_pairs(batch["frames"][:, 0], batch["frames"][:, 1]))
        optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-3)
        loss = torch.stack(
            [balanced_cross_entropy(*both) for both in zip(logits.split(factor_sizes(spec), 1), wanted.T, strict=True)]
        )
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return ActionClassifier(model.eval(), spec, cuts)


def balanced_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with weights inverse to the frequency of each class."""
    weight = (y.bincount(minlength=logits.shape[1]) + 1.0).reciprocal()
    return F.cross_entropy(logits, y, weight=weight / weight.mean())


@dataclass(frozen=True)
class Predictions:
    """Counts of n videos: how often each value of each factor occurred, and how often it was predicted correctly."""

    n_true: np.ndarray
    """(n, values), with the values of all factors concatenated."""
    n_correct: np.ndarray
    """(n, values)."""
    n_values: tuple[int, ...]
    """Number of values of each factor."""

    def accuracies(self, times: np.ndarray) -> np.ndarray:
        """Balanced accuracy (draws,) of bootstrap resamples, with each video counted `times` (draws, n) times.

        Balanced: the recall of each value that occurs, averaged over the values of a factor, then over factors.
        """
        there, right = times @ self.n_true, times @ self.n_correct
        shares, cuts = right / np.maximum(there, 1), np.cumsum(self.n_values)[:-1]
        factors = zip(np.split(shares, cuts, axis=1), np.split(there > 0, cuts, axis=1), strict=True)
        return np.mean([share.sum(1) / found.sum(1) for share, found in factors], axis=0)

    @property
    def mean(self) -> float:
        """Balanced accuracy over all videos."""
        return float(self.accuracies(np.ones((1, len(self.n_true))))[0])


@torch.no_grad()
def classify_actions(reader: ActionClassifier, films: np.ndarray, actions: np.ndarray) -> Predictions:
    """Predict actions (n, t, ...) from videos (n, t + 1, h, w, 3), and count the correct ones."""
    (n, t), sizes = actions.shape[:2], factor_sizes(reader.spec)
    before, after = films[:, :-1].reshape(n * t, *films.shape[2:]), films[:, 1:].reshape(n * t, *films.shape[2:])
    logits = torch.cat(
        [reader.model(frame_pairs(before[i : i + 512], after[i : i + 512])) for i in range(0, n * t, 512)]
    )
    said = torch.stack([part.argmax(1) for part in logits.split(sizes, 1)], 1).numpy().reshape(n, t, -1)
    true = action_labels(reader.spec, actions, reader.bin_edges)
    there = np.concatenate([true[..., i, None] == np.arange(size) for i, size in enumerate(sizes)], 2)
    right = there & np.repeat(said == true, sizes, axis=2)  # (n, t, values)
    return Predictions(there.sum(1), right.sum(1), sizes)


def accuracy(of: Predictions, groups: np.ndarray | None = None) -> MeanInterval:
    """Balanced accuracy, with its interval over groups (n,) of videos, by default over single videos."""
    n = len(of.n_true)
    return percentile_interval(of.mean, of.accuracies(bootstrap_counts(np.arange(n) if groups is None else groups)), n)


def accuracy_ratio(a: Predictions, b: Predictions, groups: np.ndarray | None) -> MeanInterval:
    """Ratio of the accuracies of a and b. The same groups are resampled for both; without groups, videos of each."""
    n, m = len(a.n_true), len(b.n_true)
    times = bootstrap_counts(np.arange(n) if groups is None else groups)
    others = bootstrap_counts(np.arange(m), seed=1) if groups is None else times
    return percentile_interval(a.mean / b.mean, a.accuracies(times) / b.accuracies(others), n)
