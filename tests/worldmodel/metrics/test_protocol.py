"""Protocols, and which figures of the paper may stand beside ours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worldmodel.metrics.features import C3D_LOGITS, I3D_LOGITS, RANDOM
from worldmodel.metrics.protocol import LARGE, PAPER, POOLED, PROTOCOLS, TGAN2, Protocol, Trials
from worldmodel.metrics.published import FIGURES, matching_figure
from worldmodel.utils.errors import UserError


def test_the_protocols_are_those_of_the_papers() -> None:
    info = {
        p.name: (p.n_clips, p.samples_per_clip, p.n_trials, p.n_frames, p.n_cond_frames) for p in PROTOCOLS.values()
    }
    assert info == {
        "paper": (256, 1, 10, 16, 1),
        "pooled": (256, 100, 1, 16, 1),
        "large": (2048, 1, 1, 16, 0),
        "tgan2": (2048, 1, 10, 16, 0),
    }
    assert TGAN2.metric == "inception"
    assert {PAPER.network, POOLED.network, LARGE.network} == {I3D_LOGITS}
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.n_clips = 3  # type: ignore[misc]


def test_an_altered_protocol_says_so() -> None:
    other = PAPER.with_changes(n_clips=64, n_trials=10, n_cond_frames=None, action_conditioned=False)
    assert (other.name, other.n_clips, other.n_trials) == ("paper but n_clips = 64", 64, 10)
    assert other != PAPER
    assert PAPER.with_changes(n_clips=256, frame_size=None) is PAPER
    with pytest.raises(UserError, match="n_cond_frames = 16 must be less than n_frames"):
        PAPER.with_changes(n_cond_frames=16)
    with pytest.raises(UserError, match="n_clips must be at least 2"):
        PAPER.with_changes(n_clips=1)


def test_clips_that_are_not_the_protocols() -> None:
    clips = np.zeros((256, 16, 64, 64, 3), np.uint8)
    PAPER.check(clips, "samples")
    for wrong, text in (
        (clips[:, :8], "clips of 16 frames, but samples have 8"),
        (clips[..., :32, :], "64 x 64, but samples have 64 x 32"),
        (clips[:4], "256 clips at a time, but samples are 4"),
        (clips[..., :1], "uint8 clips"),
        (clips.view(np.int8), "uint8 clips"),
    ):
        with pytest.raises(UserError, match=text):
            PAPER.check(wrong, "samples")
    PAPER.with_changes(frame_size=0).check(clips[:, :, :32, :32], "samples")


def test_means_and_spreads() -> None:
    trials = Trials((1.0, 2.0, 6.0))
    assert (trials.mean, trials.std) == (3.0, pytest.approx(np.sqrt(14 / 3)))
    assert str(trials) == "3.00 ± 2.16"
    assert (Trials((4.0,)).std, str(Trials((4.0,)))) == (None, "4.00")


def test_the_papers_figures() -> None:
    """Against sums over the tables' columns, of values and of spreads, added up from the paper's text."""
    for table, metric, entries, values, spreads in (
        (1, "FVD", 7, 915.1, 2),
        (2, "IS", 8, 156.58, 3.1),
        (3, "NMSE", 2, 0.0074, 0),
        (3, "R-FVD", 2, 30.2, 0),
        (4, "bits/dim", 4, 9.8, 0),
        (4, "FVD", 4, 437.3, 12.6),
        (5, "R-FVD", 10, 405.9, 0),
        (5, "FVD", 10, 1227.4, 26.5),
        (5, "FVD*", 10, 952.3, 25.0),
        (6, "R-FVD", 3, 44.4, 0),
        (6, "FVD", 3, 311.3, 10.8),
        (6, "bits/dim", 3, 6.2, 0),
        (7, "R-FVD", 4, 72.9, 0),
        (7, "FVD", 4, 477.0, 9.9),
        (7, "bits/dim", 4, 10.11, 0),
    ):
        found = [f for f in FIGURES if (f.table, f.metric) == (table, metric)]
        assert len(found) == entries
        assert sum(f.value for f in found) == pytest.approx(values)
        assert sum(f.std or 0 for f in found) == pytest.approx(spreads)
    assert len(FIGURES) == 78


def test_a_figure_stands_beside_the_papers_only_if_all_is_equal() -> None:
    for metric, value in (("FVD", 103.3), ("R-FVD", 14.9), ("FVD*", 94.6)):
        figure = matching_figure(metric, PAPER, I3D_LOGITS, "bair")
        assert figure is not None
        assert figure.value == value
    figure = matching_figure("IS", TGAN2, C3D_LOGITS, "UCF-101")
    assert str(figure) == "24.69 ± 0.3 (paper, Table 2, VideoGPT)"
    rebuilt = Protocol(**PAPER.to_json())
    assert matching_figure("FVD", rebuilt, I3D_LOGITS, "BAIR"), "equal, though not the same object"
    for field in ("n_frames", "n_cond_frames", "n_clips", "samples_per_clip", "n_trials", "frame_size"):
        assert (
            matching_figure("FVD", PAPER.with_changes(**{field: getattr(PAPER, field) + 2}), I3D_LOGITS, "bair") is None
        )
    assert matching_figure("FVD", PAPER.with_changes(action_conditioned=True), I3D_LOGITS, "bair") is None
    for protocol, network, data in (
        (POOLED, I3D_LOGITS, "bair"),
        (LARGE, I3D_LOGITS, "bair"),
        (PAPER, RANDOM, "bair"),
        (PAPER, C3D_LOGITS, "bair"),
        (PAPER, I3D_LOGITS, "health_gathering_supreme"),
        (PAPER, I3D_LOGITS, ""),
        (PAPER, I3D_LOGITS, "ucf101"),
    ):
        assert matching_figure("FVD", protocol, network, data) is None


def test_figures_of_other_papers_have_no_protocol() -> None:
    others = [f for f in FIGURES if f.table in (1, 2) and f.setting != "VideoGPT"]
    assert len(others) == 13
    assert all(f.protocol is None and not f.is_main for f in others)
