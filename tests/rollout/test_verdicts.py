"""Verdicts of evaluations say what a figure means, and what to do if it is poor."""

from __future__ import annotations

from rollout.verdicts import (
    judge_control,
    judge_distances,
    judge_drift,
    judge_ends,
    judge_futures,
    judge_player,
    judge_ranking,
    judge_samples,
    judge_turn,
)
from worldmodel.metrics.interval import MeanInterval


def test_control() -> None:
    good, none = (judge_control(MeanInterval(x, x - 0.2, x + 0.2, 9), 4) for x in (2.99, 0.1))
    assert good == "the dream follows its actions (random ones cost 2.990 [2.790, 3.190] dB, 4 ahead)"
    assert none.startswith("the dream does not follow its actions (0.100 [-0.100, 0.300] dB, 4 ahead); train the prior")


def test_ends() -> None:
    some, more = MeanInterval(0.0074, 0.006, 0.009, 9), MeanInterval(0.02, 0.015, 0.025, 9)
    assert judge_ends(some, some) == (
        "terminations are predicted about as often as they happen (in 0.74% of the steps, and they happen in 0.74%)"
    )
    assert judge_ends(more, some).startswith("terminations are predicted too often (in 2.00%")
    assert judge_ends(some, more).startswith("terminations are predicted too rarely (in 0.74%")


def test_ranking() -> None:
    assert judge_ranking(0.929, 0.7, 1.0, 8) == (
        "the order in the dream agrees with that in the engine (Spearman's correlation 0.929 [0.700, 1.000], "
        "8 policies)"
    )
    assert "do not show whether their order in the dream" in judge_ranking(0.5, -0.5, 1.0, 3)
    assert "contradicts that in the engine" in judge_ranking(-0.9, -1.0, -0.5, 5)


def test_drift() -> None:
    still = {"sharpness": -0.5, "codes": 3.9, "bits": 0.0}
    assert judge_drift(still, 1000) == (
        "after 1000 steps the dream is still as it was at first (sharpness -0.5 sd, codes +3.9 sd, bits +0.0 sd)"
    )
    assert "is not as it was at first: see sharpness and codes (" in judge_drift(
        {"sharpness": -4.1, "codes": 6.0, "bits": 0.6}, 1000
    )


UP, DOWN, OPEN, FEW = (
    MeanInterval(mean, mean - 1, mean + 1, n) for mean, n in ((2.0, 99), (-2.0, 99), (0.5, 99), (2.0, 9))
)


def test_players() -> None:
    def told(more: MeanInterval) -> str:
        return judge_player("a", more, "b", "more tics", "train a")

    assert told(UP) == "a is better than b (2.000 [1.000, 3.000] more tics)"
    assert told(DOWN) == "a is worse than b (-2.000 [-3.000, -1.000] more tics); train a"
    assert told(OPEN).startswith("these episodes do not show whether a is better than b (")
    assert told(FEW).startswith("9 episodes are too few to compare a with b (")


def test_figures_that_should_be_above_zero() -> None:
    for judge, good, poor in (
        (lambda m: judge_futures(m, 15), "different actions lead to", "do not show that different actions lead to"),
        (lambda m: judge_turn(m, 10), "the dream is nearer to its first view", "do not show that the dream comes back"),
    ):
        assert good in judge(UP) and "do not" not in judge(UP) and "2.000 [1.000, 3.000]" in judge(UP)
        assert poor in judge(OPEN) and poor in judge(DOWN)


def test_few_contexts() -> None:
    assert judge_turn(UP, 9).startswith("9 starting contexts are too few to judge a full turn of the dream (")


def test_samples() -> None:
    good, bad = MeanInterval(0.8, 0.7, 0.9, 99), MeanInterval(0.99, 0.9, 1.1, 99)
    assert judge_samples(good, 4) == (
        "the best of 4 samples is nearer to the real frames than the last given frame (0.800 [0.700, 0.900] times its "
        "squared error)"
    )
    assert judge_samples(bad, 1).startswith("these clips do not show that the sample is nearer to the real frames")


def test_distances() -> None:
    assert judge_distances(100, 60) == (
        "reconstructions are more than half as far from real clips as samples are (60.00, 100.00), so improve the "
        "VQ-VAE first"
    )
    assert judge_distances(100, 40).endswith("so improve the prior first")
