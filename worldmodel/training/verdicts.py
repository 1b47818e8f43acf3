"""Verdicts at the end of a training: what its figures mean, in words, and what to do about it.

Each verdict on a model compares a figure with a trivial baseline, such as copying the last frame. Differences are taken
clip by clip, and count only if their 95% interval over held-out episodes does not contain zero; ratios, if it does not
contain one. The verdict on a policy compares its last episodes of training with its first ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.metrics.interval import MeanInterval, bootstrap

FEW_EPISODES = 10
"""Below this many held-out episodes an interval says little."""
OUTCOMES = {
    "reward": ("rewards", "scaled squared error", "more episodes with rewards", "rewards are all alike"),
    "done": ("terminations", "cross entropy", "more episodes that terminate", "there is no termination"),
    "variables": ("changes of variables", "cross entropy", "more episodes", "variables all change alike"),
}
"""For each prediction of an outcome model: its name, that of its error, what else to record, and why not to judge."""
FADED = 0.8
"""With fewer moving pixels than this, relative to the recording, moving objects are being lost."""
NEVER_CHANGES = 1e-6
"""If the best constant prediction has a smaller error, there is nothing to predict."""
STILL_FALLING = 0.01
"""If the loss falls by this fraction or more in the last tenth of the steps, training longer is worthwhile."""


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
    return (
        f"reconstructions are {_how_bad(better)} copying the last frame ({figures}), so moving objects are lost; "
        "train longer, raise --model.motion-loss-weight, or use more codes: a smaller --model.stride or more "
        "--model.n-codes"
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
        return f"actions matter: {figures} under the actions of other clips"
    return (
        f"actions have no effect on the prediction ({figures} under the actions of other clips); train longer, and "
        "check that recorded actions change what is seen"
    )


def judge_codes(bits: np.ndarray, by_frequency: np.ndarray, episode: np.ndarray) -> str:
    """Compare predictions of codes with how often training used each code.

    Args:
        bits: Bits per code of each clip (n,).
        by_frequency: Bits per code of each clip (n,) if a code is as probable as it was frequent.
        episode: Episode of each clip (n,).
    """
    better = bootstrap(by_frequency - bits, episode)
    figures = f"{bits.mean():.3f} bits per code against {by_frequency.mean():.3f}"
    if better.low > 0:
        return f"codes are predicted better than by how often they are used ({figures})"
    return f"codes are predicted {_how_bad(better)} by how often they are used ({figures}); train longer"


def judge_dream(
    error_over_copy: Sequence[MeanInterval], over_shuffled: Sequence[MeanInterval], ahead: Sequence[int]
) -> list[str]:
    """Say how many steps ahead a dream is better than copying the last frame, and for how many it follows its actions.

    A copy is exact where nothing changes. A mean of PSNR is dominated by such clips, but a dream matters where things
    change. So dream and copy are compared by their squared error. Two dreams have no such advantage over each other.

    Args:
        error_over_copy: NMSE of the dream divided by that of the last frame copied, for each number of steps ahead.
        over_shuffled: PSNR of the dream minus that of a dream under the actions of another clip.
        ahead: The numbers of steps.
    """
    copied, error = "repeating the last frame", "times the squared error"
    if far := _good([(n, ratio) for n, ratio in zip(ahead, error_over_copy, strict=True) if ratio.high < 1]):
        steps, n, ratio = far
        verdicts = [f"the dream is better than {copied} {steps} ({ratio} {error} at {n})"]
    else:
        bad = "worse than" if error_over_copy[0].low > 1 else "no better than"
        verdicts = [
            f"the dream is {bad} {copied} ({error_over_copy[0]} {error}, {ahead[0]} ahead); look at the "
            "reconstructions first, then train the prior for longer or record more"
        ]
    if far := _good([(n, gain) for n, gain in zip(ahead, over_shuffled, strict=True) if gain.low > 0]):
        steps, n, gain = far
        return [
            *verdicts,
            f"the dream follows its actions: it is better than under the actions of other clips {steps} (by {gain} dB "
            f"at {n})",
        ]
    return [
        *verdicts,
        f"the dream does not follow its actions ({over_shuffled[0]} dB, {ahead[0]} ahead, against the actions of other "
        "clips); train the prior for longer, and check that recorded actions change what is seen",
    ]


def judge_motion(dreamed: Sequence[MeanInterval], reconstructed: Sequence[MeanInterval], ahead: Sequence[int]) -> str:
    """Say whether a dream still shows what moves, such as a small ball. Errors of small objects hardly change a PSNR.

    If the camera moves, nearly everything does, and this says little.

    Args:
        dreamed: Moving pixels of the dream, divided by those of the recording, for each number of steps ahead.
        reconstructed: The same for reconstructions.
        ahead: The numbers of steps.
    """
    kept = [k for k, ratio in enumerate(dreamed) if ratio.high >= FADED]
    k = kept[-1] + 1 if kept else 0  # from here on, all have faded
    if k == len(dreamed):
        how = (
            "more moves in the dream than in the recordings"
            if dreamed[-1].low > 1 / FADED
            else "what moves stays visible"
        )
        return f"{how} ({dreamed[-1]} times as many moving pixels, {ahead[-1]} ahead)"
    figures = f"{dreamed[k]} times as many moving pixels as in the recordings, {ahead[k]} ahead"
    if reconstructed[k].high < FADED:
        return (
            f"moving objects are lost in the reconstructions ({reconstructed[k]} times as many moving pixels as in the "
            "recordings), and so in the dream; train the VQ-VAE for longer, raise --model.motion-loss-weight, or use "
            "more codes"
        )
    return (
        f"moving objects fade in the dream ({figures}; reconstructions {reconstructed[k]}); train the prior for longer"
    )


def _how_bad(gain: MeanInterval) -> str:
    """A gain that is not above zero, in words."""
    return "worse than" if gain.high < 0 else "no better than"


def _good(rows: list[tuple[int, MeanInterval]]) -> tuple[str, int, MeanInterval] | None:
    """Numbers of steps ahead in words, the last of them, and its figure; None if there are none."""
    if not rows:
        return None
    *others, last = (str(n) for n, _ in rows)
    steps = f"{', '.join(others)} and {last}" if others else last
    return f"{steps} {'step' if last == '1' else 'steps'} ahead", *rows[-1]


def judge_outcomes(ours: dict[str, np.ndarray], constant: dict[str, np.ndarray], episode: np.ndarray) -> list[str]:
    """Compare predicted outcomes with the best constant prediction.

    Args:
        ours: Error of each row (n,), by a key of `OUTCOMES`.
        constant: Error of the best constant prediction of each row (n,).
        episode: Episode of each row (n,).
    """
    verdicts = []
    for name, errors in ours.items():
        what, measure, cure, alike = OUTCOMES[name]
        if constant[name].mean() < NEVER_CHANGES:
            verdicts.append(f"in the held-out sequences {alike}, so predictions of {what} are not judged")
            continue
        better = bootstrap(constant[name] - errors, episode)
        figures = f"{measure} {errors.mean():.3g} against {constant[name].mean():.3g}"
        if better.low > 0:
            verdicts.append(f"{what} are predicted better than by a constant ({figures})")
        else:
            verdicts.append(
                f"{what} are predicted {_how_bad(better)} by a constant ({figures}); train longer, or record {cure}"
            )
    return verdicts


def judge_returns(returns: Sequence[Sequence[float]]) -> list[str]:
    """Compare the first and the last fifth of the episodes of a policy's training.

    Args:
        returns: Those of the episodes of each environment, in order. Each environment is taken separately,
            because short episodes finish first.
    """
    fifth = min(map(len, returns), default=0) // 5
    first, last = (
        np.array([part for each in returns for part in each[where]]) for where in (slice(fifth), slice(-fifth, None))
    )
    if not fifth or len(first) < FEW_EPISODES:
        return []
    before, after = first.mean(), last.mean()
    gain, error = after - before, 1.96 * np.sqrt((first.var() + last.var()) / len(first))
    first_and_last = (f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" for x in (before, after))
    figures = "the mean return was {} in the first fifth of the episodes, {} in the last".format(*first_and_last)
    if gain > error:
        return [f"the policy improved: {figures}"]
    if gain < -error:
        return [f"the policy got worse: {figures}; lower --learning-rate"]
    return [f"the policy did not improve: {figures}; if it is not good yet, train longer"]


def judge_imitation(policy: Sequence[float], expert: Sequence[float]) -> str:
    """Compare the returns of a policy's last episodes with those of the expert that it imitates."""
    if min(len(policy), len(expert)) < FEW_EPISODES:
        return f"too few whole episodes to compare the policy with the expert ({len(policy)} and {len(expert)})"
    ours, theirs = np.array(policy), np.array(expert)
    error = 1.96 * np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    figures = f"mean return {ours.mean():.3g}, the expert's {theirs.mean():.3g}"
    better = ours.mean() - theirs.mean()
    if better > error:
        return f"the policy is better than the expert ({figures})"
    if better < -error:
        return f"the policy is worse than the expert ({figures}); give it more --n-rounds, or continue with PPO"
    return f"these episodes show no difference between the policy and the expert ({figures})"


def judge_split(episode: np.ndarray) -> list[str]:
    """Warn if there are few held-out episodes (n,)."""
    n = len(np.unique(episode))
    if n >= FEW_EPISODES:
        return []
    are = "is 1 held-out episode" if n == 1 else f"are {n} held-out episodes"
    return [f"there {are}, so the intervals are unreliable; record more episodes"]


def judge_loss(losses: Sequence[float]) -> list[str]:
    """Say whether the loss (steps,) still falls at the end of a training."""
    tenth = len(losses) // 10
    if not tenth:
        return []
    before, last = np.mean(losses[-2 * tenth : -tenth]), np.mean(losses[-tenth:])
    if before - last < STILL_FALLING * abs(before):
        return []
    fall = (before - last) / abs(before)
    return [
        f"the loss still falls, by {fall:.0%} in the last tenth of the steps; continue with a larger --trainer.steps"
    ]
