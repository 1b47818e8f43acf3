"""Verdicts at the end of a training: what its figures mean, in words, and what to do about it.

Each verdict compares a figure with what costs nothing, such as copying the last frame. Differences are taken clip by
clip, and count only if their 95% interval over held-out episodes does not contain zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.metrics.interval import bootstrap

FEW_EPISODES = 10
"""Below this many held-out episodes an interval says little."""
STILL_FALLING = 0.01
"""Fraction of the loss that it must fall in the last tenth of the steps to be worth training on."""


def judge_reconstructions(nmse: np.ndarray, copied: np.ndarray, episode: np.ndarray) -> str:
    """Compare reconstructions with copying the frame before.

    Args:
        nmse: Error of the reconstruction of each clip (n,).
        copied: Error of each clip (n,) if every frame is the one before it.
        episode: Episode of each clip (n,).
    """
    better, figures = bootstrap(copied - nmse, episode), f"NMSE {nmse.mean():.3g} against {copied.mean():.3g}"
    if better.low > 0:
        return f"reconstructions are better than copying the last frame ({figures})"
    how = "worse than" if better.high < 0 else "no better than"
    return (
        f"reconstructions are {how} copying the last frame ({figures}), so what moves is lost; train longer, raise "
        "--model.motion-loss-weight, or give it more codes"
    )


def judge_actions(bits: np.ndarray, shuffled: np.ndarray, episode: np.ndarray) -> str:
    """Compare predictions under the true actions with those under the actions of other clips.

    Args:
        bits: Bits per code of each clip (n,) under its own conditions.
        shuffled: Bits per code (n,) under those of another clip.
        episode: Episode of each clip (n,).
    """
    gain, figures = bootstrap(shuffled - bits, episode), f"{bits.mean():.3f} bits per code, {shuffled.mean():.3f}"
    if gain.low > 0:
        return f"actions matter: {figures} under those of other clips"
    return (
        f"actions have no effect on the prediction ({figures} under those of other clips); train longer, and check "
        "that recorded actions change what is seen"
    )


def judge_split(episode: np.ndarray) -> list[str]:
    """Warn if there are few held-out episodes (n,)."""
    n = len(np.unique(episode))
    if n >= FEW_EPISODES:
        return []
    return [f"there are {n} held-out episodes, so intervals mean little; record more episodes"]


def judge_loss(losses: Sequence[float]) -> list[str]:
    """Say whether the loss (steps,) still falls at the end of a training."""
    tenth = len(losses) // 10
    if not tenth:
        return []
    before, last = np.mean(losses[-2 * tenth : -tenth]), np.mean(losses[-tenth:])
    if before - last < STILL_FALLING * abs(before):
        return []
    fall = (before - last) / abs(before)
    return [f"the loss still falls, by {fall:.0%} in the last tenth of the steps; train on with more --trainer.steps"]
