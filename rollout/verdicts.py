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


def judge_player(name: str, better: MeanInterval, other: str, figure: str) -> str:
    """Say whether a player is better than another one; `better` is by how much of `figure`, in the same episodes."""
    by = f"by {better} {figure}"
    if better.low > 0:
        return f"{name} is better than {other} ({by})"
    if better.high < 0:
        return f"{name} is worse than {other} ({by}); train it, or the dream that it learned or plans in, for longer"
    return f"these episodes do not show whether {name} is better than {other} ({by}); play more --episodes"


def judge_futures(apart: MeanInterval, steps: int) -> str:
    """Say whether actions decide what happens; `apart` is how much further other actions lead than chance does."""
    if apart.low > 0:
        return f"other actions lead to other futures ({apart} further apart than by chance, {steps} ahead)"
    return (
        f"other actions do not lead to other futures ({apart} further apart than by chance, {steps} ahead); train the "
        "prior for longer, or sample at a lower --sampling.temperature"
    )


def judge_return(nearer: MeanInterval) -> str:
    """Say whether a dream returns to the view it started from; `nearer` is by how much after a full turn, in dB."""
    if nearer.low > 0:
        return f"after a full turn the dream returns to where it started (by {nearer} dB nearer than after half a turn)"
    return (
        f"after a full turn the dream does not return to where it started (by {nearer} dB nearer than after half a "
        "turn); it remembers the frames of the prior's --model.window and no others, so train one with a longer window"
    )


def judge_samples(gain: MeanInterval, n: int) -> str:
    """Say whether the best of n samples predicts anything; `gain` is its PSNR minus that of a repeated frame, in dB."""
    best = "the sample" if n == 1 else f"the best of {n} samples"
    if gain.low > 0:
        return f"{best} is nearer to the real frames than the last given frame is (by {gain} dB)"
    return (
        f"{best} is no nearer to the real frames than the last given frame is (by {gain} dB); train the prior for "
        "longer, or draw more --samples-per-clip if the future of these clips is open"
    )


def judge_distances(samples: float, reconstructions: float, name: str) -> str:
    """Say which model a distance from real clips comes from, given that of samples and that of reconstructions."""
    figures = f"{name}: samples {samples:.2f}, reconstructions {reconstructions:.2f}"
    if reconstructions > samples / 2:
        return f"more than half of the distance comes from the VQ-VAE ({figures}); improve it first"
    return f"less than half of the distance comes from the VQ-VAE ({figures}); improve the prior first"


def judge_drift(drifts: Mapping[str, float], steps: int) -> str:
    """Say whether a long dream stays as it begins; drifts by name, in standard deviations of real windows."""
    figures = ", ".join(f"{name} {drift:+.1f} sd" for name, drift in drifts.items())
    if far := [name for name, drift in drifts.items() if abs(drift) > FAR]:
        return (
            f"after {steps} steps the dream is not as it was at first: see {' and '.join(far)} ({figures}); train the "
            "prior for longer, or use shorter dreams"
        )
    return f"after {steps} steps the dream is still as it was at first ({figures})"
