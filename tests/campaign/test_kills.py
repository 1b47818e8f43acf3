"""The campaign's kills: a few of them, and that its judge finds what is planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.campaign import kills
from tests.campaign.careless import gives_up, repeats


def test_stores_and_checkpoints_that_are_killed_end_as_they_would_have() -> None:
    tally = kills.run(3, 0, ["collect"])
    assert tally.clean, "\n".join(tally.faults)
    assert tally.counts["right"] >= 4 * len(kills.MODES)


def test_a_training_that_is_killed_between_two_calls_ends_as_it_would_have(tmp_path: Path) -> None:
    assert kills.Bench(tmp_path).attempt("vqvae", "call", np.random.default_rng(0)) == ("right", "")


@pytest.mark.parametrize(("work", "verdict"), [(repeats, "silent"), (gives_up, "traceback")])
def test_a_stage_that_does_not_go_on_is_found(
    work: Callable[[Path], None], verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kills.STAGES, "planted", kills.Stage(work, (), ("out",)))
    bench = kills.Bench(tmp_path)
    assert verdict in {bench.attempt("planted", "call", np.random.default_rng(n))[0] for n in range(4)}
