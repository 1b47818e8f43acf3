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

from worldmodel.clips import Clips
from worldmodel.store import Store
from worldmodel.vqvae import to_float
from worldmodel.world import ActionSpec

THIRDS = 3


@dataclass(frozen=True)
class Reader:
    """What reads actions."""

    model: nn.Module
    spec: ActionSpec
    cuts: np.ndarray | None = None
    """(2, numbers) of a Box: what the lower and the middle third of each number do not pass."""


def classes(spec: ActionSpec) -> tuple[int, ...]:
    """How many values each factor has."""
    return spec.nvec or (THIRDS,) * len(spec.low)


def thirds(store: Store) -> np.ndarray | None:
    """The cuts of a Box, from the actions of the training split."""
    if store.world.action.kind != "Box":
        return None
    actions = np.concatenate([store.episode(i)["action"][:-1] for i in store.episodes("train")])  # the last has none
    return np.quantile(actions, [1 / 3, 2 / 3], axis=0)


def labels(spec: ActionSpec, actions: np.ndarray, cuts: np.ndarray | None = None) -> np.ndarray:
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


def pair(before: np.ndarray, after: np.ndarray) -> Tensor:
    """uint8 frames (n, h, w, 3), twice -> (n, 9, h, w)."""
    a, b = (to_float(torch.from_numpy(x)).movedim(-1, 1) for x in (before, after))
    return torch.cat([a, b, b - a], dim=1)


def learn(store: Store, steps: int, seed: int) -> Reader:
    """A reader that learned from real pairs of the training split, every value of a factor as frequent as any other."""
    spec, cuts = store.world.action, thirds(store)
    torch.manual_seed(seed)
    clips, model = Clips(store, "train", 2, ["frames", "action"]), classifier(sum(classes(spec)))
    rng, optimizer = np.random.default_rng(seed), None
    for _ in tqdm(range(steps), unit=" steps", desc="classifier"):
        batch = clips.sample(rng, 128)
        wanted = torch.from_numpy(labels(spec, batch["action"][:, 0], cuts))
        logits = model(pair(batch["frames"][:, 0], batch["frames"][:, 1]))
        optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-3)
        loss = torch.stack([balanced(*both) for both in zip(logits.split(classes(spec), 1), wanted.T, strict=True)])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return Reader(model.eval(), spec, cuts)


def balanced(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in which rare values weigh more."""
    weight = (y.bincount(minlength=logits.shape[1]) + 1.0).reciprocal()
    return F.cross_entropy(logits, y, weight=weight / weight.mean())


@torch.no_grad()
def hits(reader: Reader, films: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """(n,) the share of actions (n, t, ...) that is read rightly from films (n, t + 1, h, w, 3), mean of the factors.

    Rare values weigh more: the mean over n is the accuracy with every value as frequent as any other (balanced).
    """
    (n, t), spec = actions.shape[:2], reader.spec
    before, after = films[:, :-1].reshape(n * t, *films.shape[2:]), films[:, 1:].reshape(n * t, *films.shape[2:])
    logits = torch.cat([reader.model(pair(before[i : i + 512], after[i : i + 512])) for i in range(0, n * t, 512)])
    factors = zip(logits.split(classes(spec), 1), np.moveaxis(labels(spec, actions, reader.cuts), -1, 0), strict=True)
    return np.mean([_hits(part.argmax(1).numpy().reshape(n, t), true) for part, true in factors], axis=0)


def _hits(read: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(n,) of one factor (n, t)."""
    share = np.bincount(true.ravel()) / true.size
    weight = 1 / (share * np.count_nonzero(share) + (share == 0))
    return ((read == true) * weight[true]).mean(1)
