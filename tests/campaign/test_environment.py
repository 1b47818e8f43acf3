"""The campaign's calls of environments: a few seconds of them, and that its judge finds what is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.dream import DreamEnv
from envs.vector import DreamVectorEnv
from tests.campaign import environment
from tests.campaign.calls import Call
from worldmodel.utils.errors import UserError


@pytest.mark.filterwarnings("ignore")
def test_calls_are_taken_or_refused() -> None:
    tally = environment.run(3, 0, least=150)
    assert tally.clean, "\n".join(tally.faults)
    assert tally.counts.total() >= 150
    assert min(tally.counts["right"], tally.counts["sentence"]) >= 5


def test_what_is_planted_is_found(toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = DreamEnv(toy_run)
    env.reset(seed=0)

    def judged(good: bool, **given: Any) -> str:
        return environment.judge(Call("reset", lambda: env.reset(**given), good), env)[0]

    assert judged(False, options=[1]) == "sentence"
    assert judged(True, options=[1]) == "silent", "refused, though it is good"
    assert judged(True, seed=3) == "right"
    assert judged(False, seed=3) == "silent", "taken, though it is no good"

    def careless(self: DreamVectorEnv, **given: Any) -> None:
        self.elapsed += 1
        raise UserError("no")

    monkeypatch.setattr(DreamVectorEnv, "reset", careless)
    assert judged(False) == "silent", "refused, but not left as it was"
    monkeypatch.setattr(DreamVectorEnv, "reset", lambda self, **given: 1 / 0)
    assert judged(False) == "traceback"
    monkeypatch.setattr(DreamVectorEnv, "reset", lambda self, **given: (None, {}))
    monkeypatch.setattr(
        DreamVectorEnv, "step_lanes", lambda self, action: (np.full(1, np.nan), *[np.zeros(1, bool)] * 2, {})
    )
    assert judged(True) == "silent", "taken, but then it did not work on"
