"""Reading actions back: an inverse-dynamics classifier, which learns from real frames only.

An action has one factor, or several that are read side by side: those of a MultiDiscrete space, or the numbers of a
Box, each as the lower, middle or upper third of the real ones. Where a number is mostly the same, as a command that is
seldom given, thirds fall together and that value is read from all above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import ActionSpec
from worldmodel.data.store import Store
from worldmodel.metrics.interval import MeanInterval, bootstrap_counts, percentile_interval
from worldmodel.models.vqvae import to_float

N_BINS = 3


@dataclass(frozen=True)
class ActionClassifier:
    """What reads actions."""

    model: nn.Module
    spec: ActionSpec
    bin_edges: np.ndarray | None = None
    """(2, numbers) of a Box: what the lower and the middle third of each number do not pass."""


def factor_sizes(spec: ActionSpec) -> tuple[int, ...]:
    """How many values each factor has."""
    return spec.nvec or (N_BINS,) * len(spec.low)


def bin_edges(store: Store) -> np.ndarray | None:
    """The cuts of a Box, from the actions of the training split."""
    if store.env_spec.action.kind != "Box":
        return None
    actions = np.concatenate(
        [store.read_episode(i)["action"][:-1] for i in store.episode_indices("train")]
    )  # the last has none
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
    """A reader that learned from real pairs of the training split, every value of a factor as frequent as any other."""
    spec, cuts = store.env_spec.action, bin_edges(store)
    torch.manual_seed(seed)
    clips, model = Clips(store, "train", 2, ["frames", "action"]), classifier(sum(factor_sizes(spec)))
    rng, optimizer = np.random.default_rng(seed), None
    for _ in tqdm(range(steps), unit=" steps", desc="classifier"):
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
    """Cross-entropy in which rare values weigh more."""
    weight = (y.bincount(minlength=logits.shape[1]) + 1.0).reciprocal()
    return F.cross_entropy(logits, y, weight=weight / weight.mean())


@dataclass(frozen=True)
class Predictions:
    """What was read from n films: how often each value of each factor was there, and how often it was read rightly."""

    n_true: np.ndarray
    """(n, values), the factors side by side."""
    n_correct: np.ndarray
    """(n, values)."""
    n_values: tuple[int, ...]
    """How many values each factor has."""

    def accuracies(self, times: np.ndarray) -> np.ndarray:
        """(draws,) with each film counted so many times (draws, n).

        With every value as frequent as any other (balanced): the mean over factors of the mean over the values that
        are there of the share that is read rightly.
        """
        there, right = times @ self.n_true, times @ self.n_correct
        shares, cuts = right / np.maximum(there, 1), np.cumsum(self.n_values)[:-1]
        factors = zip(np.split(shares, cuts, axis=1), np.split(there > 0, cuts, axis=1), strict=True)
        return np.mean([share.sum(1) / found.sum(1) for share, found in factors], axis=0)

    @property
    def mean(self) -> float:
        """Balanced accuracy over all films."""
        return float(self.accuracies(np.ones((1, len(self.n_true))))[0])


@torch.no_grad()
def classify_actions(reader: ActionClassifier, films: np.ndarray, actions: np.ndarray) -> Predictions:
    """Of actions (n, t, ...) from films (n, t + 1, h, w, 3)."""
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
    """Balanced accuracy and its interval over groups (n,) of films, by default over the films themselves."""
    n = len(of.n_true)
    return percentile_interval(of.mean, of.accuracies(bootstrap_counts(np.arange(n) if groups is None else groups)), n)


def accuracy_ratio(a: Predictions, b: Predictions, groups: np.ndarray | None) -> MeanInterval:
    """The accuracy of a over that of b; the same groups are drawn for both, or, without groups, films of each alone."""
    n, m = len(a.n_true), len(b.n_true)
    times = bootstrap_counts(np.arange(n) if groups is None else groups)
    others = bootstrap_counts(np.arange(m), seed=1) if groups is None else times
    return percentile_interval(a.mean / b.mean, a.accuracies(times) / b.accuracies(others), n)
