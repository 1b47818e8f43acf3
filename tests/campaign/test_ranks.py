"""The campaign's ranks: a few attempts, and that its judge finds what is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.campaign import ranks
from tests.campaign.careless import forgets_its_lanes


def test_the_area_is_clean() -> None:
    tally = ranks.run(0, 27, ("recurrent",), kills=0)  # with this seed, all five attempts have two ranks
    assert tally.clean, "\n".join(tally.faults)
    assert tally.counts.total() >= len(ranks.MODES)
    assert min(tally.counts["right"], tally.counts["sentence"]) > 0


def test_a_training_that_forgets_something_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "short", forgets_its_lanes)
    bench = ranks.Bench(tmp_path)
    assert bench.attempt("stop", "recurrent", np.random.default_rng(1)) == ("silent", "another end")


def test_ranks_that_say_too_much_or_hang_are_found() -> None:
    told = (2, "error: it broke\n")
    assert ranks.fault([told, (2, "")], 2, "error: it broke") is None
    assert ranks.fault([told, told], 2, "error: it broke") == ("silent", f"{[told, told]}")
    assert ranks.fault([told, (None, "")], 2, "error: it broke") == ("hang", told[1])
    assert ranks.fault([told, (1, "Traceback (most recent call last)")], 2, "error: it broke")[0] == "traceback"  # type: ignore[index]
