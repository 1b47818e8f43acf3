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
    judge_return,
    judge_samples,
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


UP, DOWN, OPEN = (MeanInterval(mean, mean - 1, mean + 1, 9) for mean in (2, -2, 0.5))


def test_players() -> None:
    assert judge_player("a", UP, "b", "tics") == "a is better than b (by 2.000 [1.000, 3.000] tics)"
    assert judge_player("a", DOWN, "b", "tics").startswith("a is worse than b (by -2.000 [-3.000, -1.000] tics); train")
    assert "do not show whether a is better than b" in judge_player("a", OPEN, "b", "tics")


def test_figures_that_should_be_above_zero() -> None:
    for judge, good, poor in (
        (lambda m: judge_futures(m, 15), "other actions lead to other", "other actions do not lead to other"),
        (judge_return, "the dream returns to where it started", "the dream does not return to where it started"),
        (lambda m: judge_samples(m, 4), "the best of 4 samples is nearer", "the best of 4 samples is no nearer"),
    ):
        assert good in judge(UP) and "2.000 [1.000, 3.000]" in judge(UP)
        assert poor in judge(OPEN) and poor in judge(DOWN)


def test_distances() -> None:
    assert judge_distances(100, 60, "FVD") == (
        "more than half of the distance comes from the VQ-VAE (FVD: samples 100.00, reconstructions 60.00); improve it "
        "first"
    )
    assert judge_distances(100, 40, "FVD").startswith("less than half of the distance comes from the VQ-VAE")
