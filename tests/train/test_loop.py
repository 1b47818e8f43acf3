"""The loop runs each stage once, with flags that its script takes, and goes on where it was interrupted."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from configs import parse
from tests.conftest import fill
from train import commands, loop, loop_stages
from worldmodel.data.opening import open_store
from worldmodel.training.scalars import read_scalars
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PRESET = ["health_gathering_loop"]
NAMES = ["collect", "vqvae", "tokens", "prior", "outcome", "policy", "score"]


class Runner:
    """Takes the place of `run_python`: parses the command as its script would, and writes what the loop reads."""

    def __init__(self, fails: str = "", status: int = 2) -> None:
        self.fails, self.status = fails, status
        self.called: list[tuple[str, Any]] = []

    def __call__(self, line: list[str], output: object = None, is_part: bool = False) -> int:
        assert is_part and output is None
        script = Path(line[0]).relative_to(ROOT)
        module = importlib.import_module(".".join(script.with_suffix("").parts))
        kind = get_type_hints(module.main)["args"]
        section = "collect" if script.parts[0] == "collect" else script.stem
        args = parse(kind, section, line[1:])
        if self.fails and self.fails in " ".join(line):
            return self.status
        self.called.append((script.stem, args))
        if section == "collect":
            fill(Path(args.out), 4 + len(self.called))
        if section == "evaluate_policy":
            args.out.mkdir(parents=True, exist_ok=True)
            tics = {"mean": 500.0 + len(self.called), "interval95": [450.0, 560.0]}
            scores = {"random": {"tics": tics | {"mean": 400.0}}, args.policy[0]: {"tics": tics}}
            (args.out / "scores.json").write_text(json.dumps({"scores": scores}))
        return 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(commands, "run_python", runner)
    return runner


def test_a_round_trains_on_all_data_and_from_the_round_before(tmp_path: Path, run: Runner) -> None:
    args = loop.Args(run=tmp_path, rounds=3, vqvae_steps=(7, 5), exploration=(0.1, 0.4), engine_steps=100)
    loop.loop(args, PRESET)
    rounds = [run.called[7 * k : 7 * k + 7] for k in range(3)]
    scripts = ["vizdoom", "vqvae", "tokens", "prior", "outcome", "policy", "evaluate_policy"]
    assert [[name for name, _ in r] for r in rounds] == [scripts] * 3
    assert rounds[0][0][1].policy == ("random",)
    assert rounds[2][0][1].policy == (f"{tmp_path}/round-1/policy@0.1", f"{tmp_path}/round-1/policy@0.4")
    assert [r[0][1].seed for r in rounds] == [0, 1, 2] and len({r[6][1].seed for r in rounds}) == 1
    assert [r[1][1].trainer.steps for r in rounds] == [7, 5, 5]
    for part, at in (("vqvae", 1), ("prior", 3), ("policy", 5)):
        assert [r[at][1].init_from for r in rounds] == [None, *(tmp_path / f"round-{k}" / part for k in (0, 1))]
    data = str(tmp_path / "data.zarr")
    assert all(r[1][1].data == data and r[2][1].data == (data,) for r in rounds)
    assert rounds[1][3][1].actions and rounds[1][5][1].env_id == "VideoGPTDream-v0"
    assert len(open_store(data).episode_ends) == sum(4 + n for n in (1, 8, 15))
    engine = run.called[21:]
    assert [a.stop_at_step for name, a in engine if name == "policy"] == [20, 40, 60, 80, 100]
    assert all(a.env_id == "VizdoomFrames-v0" and a.num_envs == 8 for name, a in engine if name == "policy")
    scores = json.loads((tmp_path / "score.json").read_text())
    parts = open_store(data).parts  # type: ignore[attr-defined]
    frames = np.cumsum([part.n_rows - len(part.episode_ends) for part in parts])
    assert [row["steps"] for row in scores["in the dream"]] == frames.tolist()
    assert [row["mean"] for row in scores["in the dream"]] == [507, 514, 521]
    assert [row["steps"] for row in scores["in the engine"]] == [20, 40, 60, 80, 100]
    logged = read_scalars(tmp_path / "log" / "in_the_dream", "score/tics")
    assert [(e.step, e.value) for e in logged] == [(n, 507 + 7 * k) for k, n in enumerate(frames)]
    assert (tmp_path / "score.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["collect", "prior", "score"])
def test_an_interrupted_loop_goes_on_with_the_stage_it_was_in(
    name: str, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = loop.Args(run=tmp_path, rounds=2)
    stage = loop_stages.round_stages(args, 1)[NAMES.index(name)]
    fails = stage.script + " " + " ".join(map(str, ["--preset", *PRESET, "--" + next(iter(stage.flags))]))
    whole = Runner()
    monkeypatch.setattr(commands, "run_python", whole)
    loop.loop(replace(args, run=tmp_path / "whole"), PRESET)
    for status, error in ((2, UserError), (130, KeyboardInterrupt)):
        monkeypatch.setattr(
            commands, "run_python", broken := Runner(f"{fails} {next(iter(stage.flags.values()))}", status)
        )
        with pytest.raises(error, match="round-1/" + name if status == 2 else None):
            loop.loop(args, PRESET)
        if status == 2:
            assert [script for script, _ in broken.called] == [s for s, _ in whole.called[: 7 + NAMES.index(name)]]
        else:
            assert not broken.called, "what is done is not run again"
    monkeypatch.setattr(commands, "run_python", run)
    loop.loop(args, PRESET)
    assert [script for script, _ in run.called] == [s for s, _ in whole.called[7 + NAMES.index(name) :]]
    assert f"round-1/{name}: python " in capsys.readouterr().out
    loop.loop(args, PRESET)
    loop.loop(replace(args, rounds=3), PRESET)
    assert [script for script, _ in run.called[-7:]] == [s for s, _ in whole.called[:7]], "more rounds go on"


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, run: Runner) -> None:
    args = loop.Args(run=tmp_path, rounds=1)
    with pytest.raises(UserError, match="the loop needs the settings of every stage; give --preset"):
        loop.loop(args, [])
    with pytest.raises(UserError, match="preset 'demo' has no section policy, which the loop needs; add it"):
        loop.loop(args, [*PRESET, "demo"])
    assert not list(tmp_path.iterdir())
    loop.loop(args, PRESET)
    with pytest.raises(UserError, match=r"holds a loop with episodes = \[100\], but \[9\] was asked for; use another"):
        loop.loop(replace(args, episodes=(9,)), PRESET)
    with pytest.raises(UserError, match="engine_steps must be at least engine_scores, 5, or 0"):
        loop.Args(engine_steps=4)
    for text in ("{", "[]", '{"done": []}'):
        (tmp_path / "loop.json").write_text(text)
        with pytest.raises(UserError, match=r"loop\.json is damaged; restore it, or use another --run"):
            loop.loop(args, PRESET)
    (tmp_path / "loop.json").unlink()
    with pytest.raises(UserError, match=r"has data or models, but no loop\.json; use another --run"):
        loop.loop(args, PRESET)


def test_fewer_rounds_lose_nothing(tmp_path: Path, run: Runner) -> None:
    args = loop.Args(run=tmp_path, rounds=3)
    loop.loop(args, PRESET)
    kept = [(tmp_path / name).read_bytes() for name in ("score.json", "data.zarr/manifest.json")]
    calls = len(run.called)
    loop.loop(replace(args, rounds=1), PRESET)
    assert [(tmp_path / name).read_bytes() for name in ("score.json", "data.zarr/manifest.json")] == kept
    assert len(run.called) == calls


def test_a_command_that_is_interrupted_has_the_time_it_needs(tmp_path: Path) -> None:
    """Ctrl-C stops it once, and it saves what it has, even if that takes longer than a moment."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(1)\n    pathlib.Path(sys.argv[1], 'saved').touch()\n    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "time.sleep(60)\n"
    )

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            commands.run_python(["-c", code, str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, usual)
    assert (tmp_path / "saved").exists()
