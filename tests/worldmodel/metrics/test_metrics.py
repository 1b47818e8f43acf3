"""Figures of merit and pictures, by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from worldmodel.metrics.frames import nmse, psnr
from worldmodel.metrics.interval import bootstrap, bootstrap_ratio
from worldmodel.utils.video_io import add_labels, add_video, gif_bytes, side_by_side, video_grid


def test_psnr_and_nmse_by_hand() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    off = truth.copy()
    off[1] += 51  # a fifth of the range: error 0.04
    assert psnr(off, truth) == pytest.approx([20 * np.log10(510), 10 * np.log10(25)])
    assert nmse(off, truth, variance=0.02) == pytest.approx([0, 2])
    assert nmse(truth, off, variance=0.02) == pytest.approx([0, 2]), "no wrap-around of uint8"


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        means = rng.normal(size=40)  # 40 episodes, each with 5 clips that share its mean
        m = bootstrap(np.repeat(means, 5) + 0.1 * rng.normal(size=200), np.repeat(np.arange(40), 5), n_resamples=300)
        inside += m.low <= 0 <= m.high
    assert 0.88 <= inside / 200 <= 0.99


def test_groups_widen_an_interval() -> None:
    values, groups = np.repeat([0.0, 1.0, 2.0, 3.0], 50), np.repeat(np.arange(4), 50)
    alone, grouped = bootstrap(values), bootstrap(values, groups)
    assert alone.mean == grouped.mean == 1.5
    assert grouped.high - grouped.low > 4 * (alone.high - alone.low)


def test_films_lie_where_they_should() -> None:
    films = np.arange(2 * 3 * 2 * 2 * 3).reshape(2, 3, 2, 2, 3).astype(np.uint8)
    strip = video_grid(films)
    assert strip.shape == (4, 6, 3)
    assert np.array_equal(strip[2:4, 4:6], films[1, 2])
    both = side_by_side([films, 255 - films])
    assert both.shape == (3, 4, 4, 3)
    assert np.array_equal(both[1, 2:4, 2:4], 255 - films[1, 1])
    assert add_labels(strip, ["a"]).shape == (4 + 14, 6, 3)


def test_gray_films_become_pictures_in_color() -> None:
    gray = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2, 1)
    color = gray.repeat(3, -1)
    assert np.array_equal(video_grid(gray), video_grid(color))
    assert np.array_equal(side_by_side([gray, gray]), side_by_side([color, color]))


def test_gifs_move_at_the_worlds_pace(tmp_path: Path) -> None:
    film = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(gif_bytes(film, fps=10)))
    assert (image.n_frames, image.info["duration"], image.size) == (5, 100, (8, 8))  # type: ignore[attr-defined]
    with SummaryWriter(str(tmp_path)) as writer:
        add_video(writer, "film", film, 3, fps=10)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Images("film")
    assert event.step == 3
    assert Image.open(io.BytesIO(event.encoded_image_string)).n_frames == 5  # type: ignore[attr-defined]


def test_ratios_of_means() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(5, 2, size=400)
    together = bootstrap_ratio(2 * shared, shared, np.arange(400))
    assert (together.mean, together.low, together.high) == pytest.approx((2, 2, 2)), "what both share cancels"
