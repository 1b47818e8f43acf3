"""Verdicts of the evaluations in this folder: what their figures mean, in words, and what to do about it.

rollout/evaluate.py and the trainings have theirs in worldmodel/training/verdicts.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from worldmodel.metrics.interval import MeanInterval
from worldmodel.training.verdicts import FEW_EPISODES

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


def judge_player(name: str, more: MeanInterval, other: str, figure: str, cure: str) -> str:
    """Say whether a player is better than another one.

    Args:
        name: The player.
        more: How much more of `figure` it has than the other one, in the same episodes.
        other: The other player.
        figure: What is compared, such as "tics".
        cure: What to do if it is worse.
    """
    figures = f"({more} {figure})"
    if more.n < FEW_EPISODES:
        return f"{more.n} episodes are too few to compare {name} with {other} {figures}; play more --episodes"
    if more.low > 0:
        return f"{name} is better than {other} {figures}"
    if more.high < 0:
        return f"{name} is worse than {other} {figures}; {cure}"
    return f"these episodes do not show whether {name} is better than {other} {figures}; play more --episodes"


def judge_futures(apart: MeanInterval, steps: int) -> str:
    """Say whether actions decide what happens; `apart` is how much further other actions lead than chance does."""
    figures = f"({apart} further apart than two samples under the same actions, after {steps} steps)"
    if apart.low > 0:
        return f"different actions lead to different futures {figures}"
    return (
        f"these starts do not show that different actions lead to different futures {figures}; train the prior for "
        "longer, or use more --n-starts or a lower --sampling.temperature"
    )


def judge_turn(nearer: MeanInterval, n_contexts: int) -> str:
    """Say whether a dream turns back to the view it started from.

    Args:
        nearer: PSNR with the first frame after a full turn, minus that after half a turn, in dB.
        n_contexts: Number of different starting contexts.
    """
    figures = f"(PSNR with the first frame, minus that after half a turn: {nearer} dB)"
    if n_contexts < FEW_EPISODES:
        return f"{n_contexts} starting contexts are too few to judge a full turn of the dream {figures}"
    if nearer.low > 0:
        return f"after a full turn the dream is nearer to its first view than after half a turn {figures}"
    return (
        f"these turns do not show that the dream comes back to its first view after a full turn {figures}; a longer "
        "--model.window of the prior may help if a turn takes more steps than the window has"
    )


def judge_samples(error: MeanInterval, n: int) -> str:
    """Say whether samples predict anything.

    Args:
        error: Squared error of the best of n samples, divided by that of the last given frame.
        n: Number of samples of each clip; the best one is chosen by the real frames.
    """
    which = "the sample is" if n == 1 else f"the best of {n} samples is"
    figures = f"({error} times its squared error)"
    if error.high < 1:
        return f"{which} nearer to the real frames than the last given frame {figures}"
    return (
        f"these clips do not show that {which} nearer to the real frames than the last given frame {figures}; train "
        "the prior for longer, or use more --n-clips"
    )


def judge_distances(samples: float, reconstructions: float) -> str:
    """Compare the distance of samples from real clips with that of reconstructions."""
    how, model = ("more", "VQ-VAE") if reconstructions > samples / 2 else ("less", "prior")
    return (
        f"reconstructions are {how} than half as far from real clips as samples are ({reconstructions:.2f}, "
        f"{samples:.2f}), so improve the {model} first"
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
