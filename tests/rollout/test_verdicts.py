"""Verdicts of evaluations say what a figure means, and what to do if it is poor."""

from __future__ import annotations

from rollout.verdicts import judge_control, judge_drift, judge_ends, judge_ranking
from worldmodel.metrics.interval import MeanInterval


def test_control() -> None:
    assert judge_control(MeanInterval(2.99, 2.63, 3.36, 9), 4).startswith(
        "actions change the dream (other actions cost"
    )
    none = judge_control(MeanInterval(0.1, -0.1, 0.3, 9), 4)
    assert none.startswith("actions do not change the dream (0.100 [-0.100, 0.300] dB, 4 steps ahead); train the prior")


def test_ends() -> None:
    some, more = MeanInterval(0.0074, 0.006, 0.009, 9), MeanInterval(0.02, 0.015, 0.025, 9)
    assert judge_ends(some, some) == (
        "terminations are predicted about as often as they happen (in 0.74% of the steps, and they happen in 0.74%)"
    )
    assert judge_ends(more, some).startswith("terminations are predicted too often (in 2.00%")
    assert judge_ends(some, more).startswith("terminations are predicted too rarely (in 0.74%")


def test_ranking() -> None:
    assert judge_ranking(0.929, 0.7, 1.0, 8) == (
        "the dream orders these policies much as the engine does (Spearman's correlation 0.929 [0.700, 1.000], "
        "8 policies)"
    )
    assert "do not show whether the dream orders them" in judge_ranking(0.5, -0.5, 1.0, 3)


def test_drift() -> None:
    still = {"sharpness": -0.5, "codes": 1.9, "bits": 0.0}
    assert judge_drift(still, 1000) == (
        "after 1000 steps the dream is still like the recording (sharpness -0.5 sd, codes +1.9 sd, bits +0.0 sd)"
    )
    assert "not like the recording any more: see sharpness and codes (" in judge_drift(
        {"sharpness": -3.9, "codes": -2.5, "bits": 0.6}, 1000
    )
