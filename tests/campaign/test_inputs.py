"""Some seconds of the campaign's inputs, and whether its judge sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import collect.files
from collect import mnist_files, tfrecord, tgif
from tests.campaign import inputs
from tests.campaign.harness import Verdict
from tests.collect.here import Here


def test_a_few_seconds_are_clean() -> None:
    tally = inputs.run(3, 0)
    assert tally.clean, "\n".join(tally.faults)
    assert tally.counts.total() >= 20


def test_an_attempt_can_be_made_again() -> None:
    assert inputs.attempt(5, 3) == inputs.attempt(5, 3)


def verdicts(kind: str, folder: Path) -> Iterator[Verdict]:
    for i in range(40):
        yield inputs.damaged(kind, np.random.default_rng(i), folder / str(i))[1]


def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "masked_crc", lambda data: mock.ANY)


def counted_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were: those of the listed GIFs, one after another."""
    usual = tgif.write_side_files

    def shifted(out: Path, filled: collect.files.Filled, sentences: dict[str, list[str]], absent: list[str]) -> None:
        clips = {clip.name: clip for clip in filled.items}
        items = [clips.get(name, filled.items[0]) for name in sentences][: len(filled.items)]
        usual(out, collect.files.Filled(items, filled.skipped), sentences, absent)

    monkeypatch.setattr(tgif, "write_side_files", shifted)


def other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a reader's own, instead of a sentence."""
    monkeypatch.setattr(mnist_files, "read_array", lambda name, path, *_, **how: np.load(path))


PLANTED: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], Verdict]] = {
    "no checksums": ("bair", no_checksums, "silent"),
    "counted sentences": ("tgif", counted_sentences, "silent"),
    "an error of another kind": ("npy", other_errors, "traceback"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, plant, verdict = PLANTED[case]
    monkeypatch.setattr("collect.files.WorkerPool", Here)
    inputs.whole(kind)  # made by what is right
    plant(monkeypatch)
    assert verdict in verdicts(kind, tmp_path)
