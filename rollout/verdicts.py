"""Verdicts of the evaluations in this folder: what their figures mean, in words, and what to do about it.

rollout/evaluate.py and the trainings have theirs in worldmodel/training/verdicts.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from worldmodel.metrics.interval import MeanInterval

FAR = 4.0
"""Standard deviations of real windows. Two real windows differ by more less than once in a hundred times."""


def judge_control(delta_psnr: MeanInterval, steps: int) -> str:
    """Say whether a dream follows its actions; `delta_psnr` is what random ones cost after this many steps, in dB."""
    if delta_psnr.low > 0:
        return f"the dream follows its actions (random ones cost {delta_psnr} dB, {steps} ahead)"
    return (
        f"the dream does not follow its actions ({delta_psnr} dB, {steps} ahead); train the prior for longer, and "
        "check that recorded actions change what is seen"
    )


def judge_ends(expected: MeanInterval, happened: MeanInterval) -> str:
    """Compare the shares of steps in which an end is predicted and in which it happens."""
    figures = f"in {expected.mean:.2%} of the steps, and they happen in {happened.mean:.2%}"
    if expected.low > happened.high or expected.high < happened.low:
        often = "too often" if expected.mean > happened.mean else "too rarely"
        return f"terminations are predicted {often} ({figures}); train for longer, or on more episodes"
    return f"terminations are predicted about as often as they happen ({figures})"


def judge_ranking(r: float, low: float, high: float, n: int) -> str:
    """Say whether a dream orders n policies as the engine does, from Spearman's correlation and its interval."""
    figures = f"Spearman's correlation {r:.3f} [{low:.3f}, {high:.3f}], {n} policies"
    if low > 0:
        return f"the order in the dream agrees with that in the engine ({figures})"
    if high < 0:
        return f"the order in the dream contradicts that in the engine ({figures}); train it on recordings of them"
    return (
        f"these policies do not show whether their order in the dream agrees with that in the engine ({figures}); use "
        "more policies, or more --episodes"
    )


def judge_drift(drifts: Mapping[str, float], steps: int) -> str:
    """Say whether a long dream stays as it begins; drifts by name, in standard deviations of real windows."""
    figures = ", ".join(f"{name} {drift:+.1f} sd" for name, drift in drifts.items())
    if far := [name for name, drift in drifts.items() if abs(drift) > FAR]:
        return (
            f"after {steps} steps the dream is not as it was at first: see {' and '.join(far)} ({figures}); train the "
            "prior for longer, or use shorter dreams"
        )
    return f"after {steps} steps the dream is still as it was at first ({figures})"
