"""The campaign's damaged checkpoints: a few seconds of them, and that its judge finds what is planted."""

from __future__ import annotations

import pytest

from tests.campaign import checkpoints
from worldmodel.utils import tensor_file


def test_damage_is_noticed() -> None:
    tally = checkpoints.run(3, 0)
    assert tally.clean, "\n".join(tally.faults)
    assert tally.counts.total() >= len(checkpoints.KINDS) * len(checkpoints.FILES) - 1
    assert min(tally.counts["right"], tally.counts["sentence"]) >= 10


def test_a_digest_that_is_not_checked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_fault", lambda data: "")
    assert checkpoints.run(0, 0).counts["silent"] >= 3


def test_older_checkpoints_that_are_used_without_a_word_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: None)
    assert checkpoints.run(0, 0).counts["silent"] >= 3
