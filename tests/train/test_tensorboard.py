"""What the stages tell TensorBoard, read back from their event files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import outcome, prior, tokens, vqvae

EVERY = {"loss", "learning_rate", "grad_norm", "clips_per_second", "share_of_peak"}
TRAIN = {
    "vqvae": EVERY | {"nmse", "commitment", "codes_used", "perplexity"},
    "prior": EVERY | {"bits_per_dim"},
    "outcome": EVERY | {"reward", "done", "variables"},
}
HELD_OUT = {
    "vqvae": {"nmse", "psnr", "codes_used", "perplexity", "codes_kept"},
    "prior": {"bits_per_dim", "bits_per_frame", "bits_per_dim_shuffled_conditions"},
    "outcome": {"loss", "reward", "done", "variables"},
}
FILMS = {"vqvae": ["held_out/truth_and_reconstruction"], "prior": ["held_out/truth_and_sample"], "outcome": []}


def test_the_stages_tell_what_a_person_looks_for(toy_store: Path, toy_stages: Callable) -> None:
    run = toy_store.parent
    for stage, args in zip((vqvae, tokens, prior, outcome), toy_stages(run, steps=2), strict=True):
        stage.main(args)
    for stage, films in FILMS.items():
        events = EventAccumulator(str(run / stage / "log"))
        events.Reload()
        wanted = {f"train/{name}" for name in TRAIN[stage]} | {f"held_out/{name}" for name in HELD_OUT[stage]}
        assert set(events.Tags()["scalars"]) == wanted
        assert {"config/text_summary", "_hparams_/session_start_info"} <= set(events.summary_metadata)
        values = {tag: events.Scalars(tag)[-1].value for tag in wanted}
        assert 0 < values["train/share_of_peak"] < 1
        if stage == "prior":
            assert values["train/bits_per_dim"] == pytest.approx(values["train/loss"] / 0.693147, rel=1e-4)
        assert events.Tags()["images"] == films
        for tag in films:
            picture = Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string))
            shown = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
            assert picture.size == (2 * 2 * 16, 2 * 4 * 16), "two columns of four clips, twice as large"
            assert (picture.format, sum(shown)) == ("GIF", 8 * 200), "eight frames at five a second"
            assert len(shown) > 1, "which move"
