"""Verdicts say what figures mean, and only where the interval allows it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from train import outcome, prior, tokens, vqvae
from worldmodel.metrics.interval import MeanInterval
from worldmodel.training.verdicts import (
    judge_actions,
    judge_codes,
    judge_dream,
    judge_imitation,
    judge_loss,
    judge_motion,
    judge_outcomes,
    judge_reconstructions,
    judge_returns,
    judge_split,
)

EPISODE = np.arange(20).repeat(2)


def figures(mean: float, spread: float = 0.1) -> np.ndarray:
    return mean + spread * np.random.default_rng(int(1000 * mean)).standard_normal(len(EPISODE))


@pytest.mark.parametrize(
    ("copied", "verdict"), [(1.5, "better than"), (0.5, "worse than .*NMSE 1 against 0.5"), (1.0, "no better than")]
)
def test_reconstructions_are_compared_with_the_last_frame(copied: float, verdict: str) -> None:
    found = judge_reconstructions(np.ones(len(EPISODE)), figures(copied) - figures(copied).mean() + copied, EPISODE)
    assert re.search(f"reconstructions are {verdict}", found)
    assert ("motion-loss-weight" in found) == (copied <= 1)


def test_actions_matter_if_those_of_other_clips_cost_bits() -> None:
    bits = figures(2.0)
    assert judge_actions(bits, bits + figures(0.5), EPISODE).startswith("actions matter: 2.0")
    noise = figures(0.0)
    assert judge_actions(bits, bits + noise - noise.mean(), EPISODE).startswith("actions have no effect")
    assert judge_actions(bits, bits, EPISODE).startswith("actions have no effect")


def test_codes_are_compared_with_how_often_they_are_used() -> None:
    bits = figures(2.0)
    good, poor = judge_codes(bits, bits + figures(0.5), EPISODE), judge_codes(bits, bits - figures(0.5), EPISODE)
    assert good.startswith("codes are predicted better than by how often they are used (2.0")
    assert poor.startswith("codes are predicted worse than by") and poor.endswith("; train longer")
    assert judge_codes(bits, bits, EPISODE).startswith("codes are predicted no better than by")


def test_a_dream_is_judged_by_how_far_ahead_it_gains() -> None:
    none, some = MeanInterval(0.1, -0.2, 0.4, 9), MeanInterval(2.5, 2.1, 2.9, 9)
    equal, fewer, more = MeanInterval(0.9, 0.7, 1.1, 9), MeanInterval(0.6, 0.5, 0.7, 9), MeanInterval(3, 2, 4, 9)
    assert judge_dream([equal, fewer, fewer], [some, none, none], (1, 5, 10)) == [
        "the dream is better than repeating the last frame 5 and 10 steps ahead (0.600 [0.500, 0.700] times the "
        "squared error at 10)",
        "the dream follows its actions: it is better than under the actions of other clips 1 step ahead "
        "(by 2.500 [2.100, 2.900] dB at 1)",
    ]
    poor, apart = judge_dream([equal], [none], (1,))
    assert "no better than repeating the last frame (0.900 [0.700, 1.100] times the squared error, 1 ahead)" in poor
    assert apart.startswith("the dream does not follow its actions (0.100 [-0.200, 0.400] dB, 1 ahead")
    assert "is worse than repeating the last frame" in judge_dream([more], [none], (1,))[0]


def test_moving_objects_that_fade_are_told() -> None:
    whole, some, few, many = (MeanInterval(x, x - 0.1, x + 0.1, 9) for x in (1.0, 0.8, 0.4, 3.0))
    assert judge_motion([whole, some], [whole, whole], (1, 5)) == (
        "what moves stays visible (0.800 [0.700, 0.900] times as many moving pixels, 5 ahead)"
    )
    assert judge_motion([few, whole, few], [whole, whole, some], (1, 5, 10)) == (
        "moving objects fade in the dream (0.400 [0.300, 0.500] times as many moving pixels as in the recordings, "
        "10 ahead; reconstructions 0.800 [0.700, 0.900]); train the prior for longer"
    )
    assert "5 ahead" in judge_motion([whole, few, few], [whole] * 3, (1, 5, 10))
    assert judge_motion([few, whole], [whole, whole], (1, 5)).startswith("what moves stays visible")
    assert judge_motion([many], [whole], (1,)).startswith("more moves in the dream than in the recordings (3.000 [")
    assert judge_motion([few], [few], (1,)).startswith("moving objects are lost in the reconstructions (0.400 [")


def test_outcomes_are_compared_with_the_best_constant() -> None:
    ones = np.ones(len(EPISODE))
    ours = {"reward": 0.5 * ones, "done": ones, "variables": 2 * ones}
    assert judge_outcomes(ours, {"reward": ones, "done": 1.5 * ones, "variables": 1.8 * ones}, EPISODE) == [
        "rewards are predicted better than by a constant (scaled squared error 0.5 against 1)",
        "terminations are predicted better than by a constant (cross entropy 1 against 1.5)",
        "changes of variables are predicted worse than by a constant (cross entropy 2 against 1.8); train longer, or "
        "record more episodes",
    ]
    assert judge_outcomes({"done": 1e-9 * ones}, {"done": 0 * ones}, EPISODE) == [
        "in the held-out sequences there is no termination, so predictions of terminations are not judged"
    ]


def test_a_policy_is_judged_by_its_first_and_last_episodes() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=(2, 50))
    better = np.linspace(0, 2000, 50) + same
    assert judge_returns(better.tolist()) == [
        "the policy improved: the mean return was 184 in the first fifth of the episodes, 1,817 in the last"
    ]
    assert judge_returns(better[:, ::-1].tolist())[0].endswith("; lower --learning-rate")
    assert judge_returns(same.tolist())[0].startswith("the policy did not improve")
    assert judge_returns(same[:, :20].tolist()) == [], "8 episodes are too few"
    assert judge_returns([]) == judge_returns([[], [1.0] * 500]) == []


def test_short_episodes_that_finish_first_are_no_improvement() -> None:
    """The first ones to finish are short, so that the order of all episodes would show better returns."""
    assert judge_returns([[1.0] * 100, [9.0] * 40])[0].startswith("the policy did not improve")


def test_few_episodes_are_told() -> None:
    assert judge_split(EPISODE) == []
    assert judge_split(np.array([3, 3, 8])) == [
        "there are 2 held-out episodes, so the intervals are unreliable; record more episodes"
    ]


def test_a_loss_that_still_falls_is_told() -> None:
    assert judge_loss(list(np.linspace(2, 1, 100))) == [
        "the loss still falls, by 9% in the last tenth of the steps; continue with a larger --trainer.steps"
    ]
    assert judge_loss([*np.linspace(2, 1, 80), *[1.0] * 20]) == []
    assert judge_loss([2.0, 1.0]) == [], "too few to say"


def test_stages_end_with_their_verdicts(toy_store, toy_stages, capsys: pytest.CaptureFixture[str]) -> None:
    stages = toy_stages(toy_store.parent, steps=40)
    for stage, args, verdict in (
        (vqvae, stages[0], "reconstructions are (better|worse|no better)( than)? copying"),
        (tokens, stages[1], ""),
        (prior, stages[2], "actions (matter|have no effect)"),
        (outcome, stages[3], "terminations are predicted (better|worse|no better)( than)? by a constant"),
    ):
        stage.main(args)
        said = capsys.readouterr().out
        if verdict:
            assert re.search(verdict, said)
            assert "held-out episodes, so the intervals are unreliable" in said, "two of twenty episodes are held out"


def test_imitation() -> None:
    good, poor = [8.0, 6.0] * 10, [5.0, 4.0] * 10
    assert "worse than the expert (mean return 4.5, the expert's 7); give it more" in judge_imitation(poor, good)
    assert judge_imitation(good, poor) == "the policy is better than the expert (mean return 7, the expert's 4.5)"
    assert judge_imitation(good, good[:14]) == (
        "these episodes show no difference between the policy and the expert (mean return 7, the expert's 7)"
    )
    assert judge_imitation(good[:9], good) == (
        "too few whole episodes to compare the policy with the expert (9 and 20)"
    )
