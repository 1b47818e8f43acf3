"""Verdicts of the evaluations in this folder: what their figures mean, in words, and what to do about it.

rollout/evaluate.py and the trainings have theirs in worldmodel/training/verdicts.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from worldmodel.metrics.interval import MeanInterval

FAR = 2.0
"""A drift of more standard deviations than this is one that real windows hardly ever have."""


def judge_control(delta_psnr: MeanInterval, steps: int) -> str:
    """Say whether actions change a dream; `delta_psnr` is how much other actions cost after this many steps, in dB."""
    if delta_psnr.low > 0:
        return f"actions change the dream (other actions cost {delta_psnr} dB, {steps} steps ahead)"
    return (
        f"actions do not change the dream ({delta_psnr} dB, {steps} steps ahead); train the prior for longer, and "
        "check that it was trained with --actions"
    )


def judge_ends(expected: MeanInterval, happened: MeanInterval) -> str:
    """Compare the shares of steps in which an end is predicted and in which it happens."""
    figures = f"in {expected.mean:.2%} of the steps, and they happen in {happened.mean:.2%}"
    if expected.low > happened.high or expected.high < happened.low:
        often = "too often" if expected.mean > happened.mean else "too rarely"
        return (
            f"terminations are predicted {often} ({figures}); train the outcome model on more episodes that terminate"
        )
    return f"terminations are predicted about as often as they happen ({figures})"


def judge_ranking(r: float, low: float, high: float, n: int) -> str:
    """Say whether a dream orders n policies as the engine does, from Spearman's correlation and its interval."""
    figures = f"Spearman's correlation {r:.3f} [{low:.3f}, {high:.3f}], {n} policies"
    if low > 0:
        return f"the dream orders these policies much as the engine does ({figures})"
    return (
        f"these policies do not show whether the dream orders them as the engine does ({figures}); use more policies, "
        "or more --episodes"
    )


def judge_drift(drifts: Mapping[str, float], steps: int) -> str:
    """Say whether a long dream stays like the recording; drifts by name, in standard deviations of real windows."""
    figures = ", ".join(f"{name} {drift:+.1f} sd" for name, drift in drifts.items())
    if far := [name for name, drift in drifts.items() if abs(drift) > FAR]:
        return (
            f"after {steps} steps the dream is not like the recording any more: see {' and '.join(far)} ({figures}); "
            "train the prior for longer, or use shorter dreams"
        )
    return f"after {steps} steps the dream is still like the recording ({figures})"
