"""The page that plays a dream, through its own requests, and Gymnasium's own player."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium.utils.play
import numpy as np
import pytest
from PIL import Image

import envs  # noqa: F401 - registers
from envs.engine_cleanup import engines
from rollout.play import PAGE, Args, make_session, serve
from rollout.play_session import FORKS, Session
from tests.campaign.runs import make_run
from tests.conftest import TOY
from tests.rollout.browser import CHROMIUM, Browser
from tests.rollout.toy_engine import ToyEngine
from worldmodel.data.env_spec import ActionSpec
from worldmodel.models.loading import load_prior
from worldmodel.utils.checkpoint import read_checkpoint, save_checkpoint
from worldmodel.utils.errors import UserError

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """The toy run, with an engine to its name."""
    folder = Path(shutil.copytree(toy_run, tmp_path / "run"))
    saved = read_checkpoint(folder / "prior")
    config, progress = saved.config, saved.progress
    config["env_spec"] |= {"env_id": "ToyEngine-v0", "env_kwargs": {}}
    save_checkpoint(folder / "prior", load_prior(folder / "prior"), config, progress)
    return folder


@pytest.fixture
def ask(run: Path) -> Iterator[Ask]:
    server = serve(Args(run=str(run), port=0, trust_env=True))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def ask(path: str, **told: int) -> dict[str, Any]:
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        request = urllib.request.Request(url, json.dumps(told).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    ask.port = server.server_port  # type: ignore[attr-defined]
    yield ask
    server.shutdown()
    server.server_close()


def picture(state: dict[str, Any], name: str) -> np.ndarray:
    return np.array(Image.open(BytesIO(base64.b64decode(state[name].partition(",")[2]))))


def test_dream_and_engine_go_the_same_way(ask: Ask) -> None:
    state = ask("state")
    for action in (2, 2, 1, 0):
        state = ask("step", action=action)
        dream, engine = (picture(state, name).astype(int) for name in ("dream", "engine"))
        assert np.abs(dream - engine).mean() < 25
    assert state["figures"]["step"] == [4, 4]
    assert state["figures"]["column"] == [pytest.approx(2, abs=0.5), 2]
    assert state["figures"]["reward"] == [pytest.approx(1, abs=0.3), 1]
    assert {"entropy, bits per code", "frames/s"} <= state["figures"].keys()


def test_rewind_fork_and_reset(ask: Ask) -> None:
    begin = ask("state")
    there = ask("step", action=2)
    assert len(ask("fork")["forks"]) == 1
    ask("step", action=2)
    assert ask("rewind", steps=2)["dream"] == begin["dream"]
    back = ask("goto", fork=0)
    assert back["dream"] == there["dream"]
    assert back["figures"]["step"] == [1, 2]
    assert back["engine"] == ask("step", action=1)["engine"], "the engine waits at its second step"
    assert back["engine"] != ask("step", action=1)["engine"], "and goes on at its third"
    again = ask("reset", seed=0)
    assert (again["dream"], again["forks"]) == (begin["dream"], [])


def test_mistakes_are_answered_not_fatal(ask: Ask, run: Path) -> None:
    for path, info, sentence in (
        ("goto", {"fork": 3}, "there is no fork 3, only 0 forks"),
        ("step", {"action": 9}, "action 9 is outside"),
        ("step", {}, "action"),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(path, **info)
        assert sentence in json.loads(error.value.read())["error"]
    assert ask("state")["figures"]["step"][0] == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{ask.port}/") as page:  # type: ignore[attr-defined]
        assert page.read() == PAGE.read_bytes()
    with pytest.raises(UserError, match="cannot be used"):
        serve(Args(run=str(run), port=ask.port, trust_env=True))  # type: ignore[attr-defined]


def test_what_a_request_may_not_ask_for_changes_nothing(ask: Ask) -> None:
    begin = ask("state")
    for path, info, sentence in (
        ("reset", {"seed": -1}, "seed must be from 0 to 2147483647, not -1"),
        ("reset", {"seed": 2**31}, "seed must be from 0"),
        ("step", {"action": 10**30}, "Discrete(3) consists of numbers of at most 64 bits, not 1000"),
        ("step", {"action": -1}, "action -1 is outside"),
        ("step", {"action": [1, 2]}, "an action of Discrete(3) has shape (), not (2,)"),
        ("step", {"action": [[1]]}, "lists of numbers"),
        ("step", {"action": ["1"]}, "lists of numbers"),
        ("reset", {"seed": [1]}, "seed must be a whole number, not [1]"),
        ("rewind", {"steps": -3}, "steps to rewind must be at least 0, not -3"),
        ("goto", {"fork": -1}, "there is no fork -1, only 0 forks"),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(path, **info)
        assert error.value.code == 400
        assert sentence in json.loads(error.value.read())["error"]
    assert ask("rewind", steps=10**30) == ask("state") == begin


def test_so_many_forks_are_kept_and_no_more(ask: Ask) -> None:
    for i in range(FORKS):
        ask("step", action=2)
        assert len(ask("fork")["forks"]) == i + 1
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask("fork")
    state = ask("goto", fork=0)
    assert (len(state["forks"]), state["figures"]["step"][0]) == (FORKS, 1)
    assert state["forks"][0] == state["dream"]
    assert ask("reset", seed=1)["forks"] == []
    assert len(ask("fork")["forks"]) == 1


def test_an_engine_that_fails_is_one_sentence_and_the_dream_goes_on(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(*_: Any, **__: Any) -> tuple:
        raise RuntimeError("the engine\nis gone")

    begin = ask("state")
    with monkeypatch.context() as patch:
        patch.setattr(ToyEngine, "step", dead)
        for path, info in (("step", {"action": 2}), ("reset", {"seed": 3})):
            with pytest.raises(urllib.error.HTTPError) as error:
                ask(path, **info)
            told_ = json.loads(error.value.read())["error"]
            assert told_ == "the engine failed (RuntimeError: the engine is gone); reset restarts it"
        state = ask("step", action=2)
        assert (state["figures"]["step"], state["over"], state["engine"]) == ([2, 0], ["engine"], begin["engine"])
    assert (ask("reset", seed=0) | {"figures": 0}) == begin | {"figures": 0}
    assert capsys.readouterr().err == ""


def test_an_engine_that_ends_in_the_lead_in_is_closed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[ToyEngine] = []
    monkeypatch.setattr(ToyEngine, "close", lambda self: closed.append(self))
    monkeypatch.setattr(ToyEngine, "step", lambda self, action: (self.frame(), 1.0, True, False, {"COLUMN": 1.0}))
    with pytest.raises(UserError, match="the engine's episode ended within 2 frames; lower --context-frames"):
        serve(Args(run=str(run), port=0, trust_env=True))
    assert len(closed) == 1


def test_the_engine_is_closed_with_the_page_and_where_there_is_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[ToyEngine] = []
    monkeypatch.setattr(ToyEngine, "close", lambda self: closed.append(self))
    with serve(Args(run=str(run), port=0, trust_env=True)) as server:
        assert not closed
        with pytest.raises(UserError, match="cannot be used"):
            serve(Args(run=str(run), port=server.server_port, trust_env=True))
        assert len(closed) == 1
    assert len(closed) == 2


def test_without_its_engine_the_dream_is_played_alone(
    run: Path, toy_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is none, where nobody trusts it, and where it is not wanted; the first two are told."""
    monkeypatch.setattr(ToyEngine, "__init__", lambda self: pytest.fail("nobody asked for the engine"))
    for args, told in (
        (Args(run=str(toy_run)), "playing without the engine: toy was not recorded from a Gymnasium environment"),
        (Args(run=str(run)), "playing without the engine: toy was recorded from 'ToyEngine-v0', which is not part of"),
        (Args(run=str(run), engine=False, trust_env=True), ""),
    ):
        with contextlib.closing(make_session(args)) as session:
            state = session.answer("step", action=2)
            assert (state["engine"], state["over"], state["figures"]["step"]) == ("", [], [1])
            assert len({session.answer("reset", seed=seed)["dream"] for seed in range(9)}) > 1, "its own contexts"
        assert capsys.readouterr().out.startswith(told)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_engine_ends_with_the_page(end: signal.Signals, tmp_path: Path) -> None:
    """Of Health Gathering, the real one."""
    page = subprocess.Popen(
        [sys.executable, str(PAGE.with_suffix(".py")), "--port", "0"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert page.stdout is not None
    port = page.stdout.readline().partition(b"127.0.0.1:")[2].split()[0].decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert answer.read() == PAGE.read_bytes()
    (folder,) = tmp_path.glob("vizdoom-*")
    assert len(list(engines(folder))) == 1
    page.send_signal(end)
    _, told = page.communicate()  # which waits for the engine, too: it has the same standard error
    assert (page.returncode, told) == (0 if end == signal.SIGTERM else -end, b"")
    while folder.exists():
        time.sleep(0.05)
    assert not list(engines(folder))


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to open the page in; the requests it makes are tested")
def test_the_page_in_a_browser(ask: Ask, tmp_path: Path) -> None:
    figure = "+[...document.querySelectorAll('#figures tr')].find(r => r.innerText.startsWith({!r})).cells[1].innerText"
    with Browser(f"http://127.0.0.1:{ask.port}/", tmp_path / "profile") as page:  # type: ignore[attr-defined]
        page.wait("document.querySelectorAll('#figures tr').length > 5")
        assert page.value("document.querySelector('h1').innerText") == "Dream of toy"
        begin = page.value("document.querySelector('#dream').src")
        page.key("d", down=True)
        page.key(" ", down=True)
        page.wait(figure.format("step") + " >= 3")
        page.key("d", down=False)
        page.key(" ", down=True)
        page.wait("!busy && !running")
        assert page.value("document.querySelector('#dream').naturalWidth") == 16
        assert page.value("document.querySelector('#engine').naturalWidth") == 16
        assert page.value(figure.format("frames/s")) > 0
        there = page.value("document.querySelector('#dream').src")
        page.click("#fork")
        page.wait("document.querySelectorAll('#forks img').length == 1")
        page.click("#rewind")
        page.wait(figure.format("step") + " == 0")
        assert page.value("document.querySelector('#dream').src") == begin
        page.click("#forks img")
        page.wait(figure.format("step") + " >= 3")
        assert page.value("document.querySelector('#dream').src") == there
        page.click("#reset")
        page.wait("document.querySelectorAll('#forks img').length == 0")
        assert page.value("document.querySelector('#over').innerText") == ""
        state = {"controls": {}, "fps": 5, "world": "x", "dream": "", "engine": "", "over": [], "forks": []}
        page.value(f"show({json.dumps(state | {'figures': {'<b id=hostile>': [1]}})})")
        assert page.value("document.querySelector('#figures').innerText").split() == ["<b", "id=hostile>", "1"]
        assert page.value("document.querySelectorAll('#hostile').length") == 0, "a name is text"
    assert ask("state")["figures"]["step"][0] == 0


KINDS = {
    "MultiDiscrete": ActionSpec(kind="MultiDiscrete", nvec=(3, 2)),
    "Box": ActionSpec(kind="Box", low=(-1.0, 0.0), high=(1.0, 4.0)),
}


@pytest.fixture(params=KINDS)
def page_of_kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int, Session]]:
    """The kind of actions of a dream, and the port of its page and its session."""
    make_run(tmp_path / "run", 0, replace(TOY, action=KINDS[request.param]))
    server = serve(Args(run=str(tmp_path / "run"), port=0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield request.param, server.server_port, server.answer.__self__  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to open the page in; the actions it sends are not tested")
def test_actions_of_several_numbers_in_a_browser(
    page_of_kind: tuple[str, int, Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sliders, several keys at once, the mouse and a gamepad."""
    kind, port, session = page_of_kind
    played: list[list[float]] = []
    step = session.dream.step
    monkeypatch.setattr(session.dream, "step", lambda action: played.append(action.tolist()) or step(action))

    def plays(page: Browser, action: list[float]) -> None:
        page.wait("!busy")
        page.value("ask('/step', {action: action()}).then(() => done = true); done = false")
        page.wait("done")
        assert played[-1] == pytest.approx(action, abs=0.01)

    with Browser(f"http://127.0.0.1:{port}/", tmp_path / "profile") as page:
        page.wait("sliders.length == 2")
        assert page.value("document.querySelector('#beside').hidden")
        plays(page, [0, 0])
        page.value("sliders[1].value = 1")
        plays(page, [0, 1])
        page.value("sliders[1].ondblclick()")
        keys, action = (("2", "q"), [2, 1]) if kind == "MultiDiscrete" else (("a", "w"), [-1, 4])
        for key in keys:
            page.key(key, down=True)
        plays(page, action)
        for key in keys:
            page.key(key, down=False)
        plays(page, [0, 0])
        if kind == "Box":
            page.value("navigator.getGamepads = () => [null, {axes: [0.05, -0.5, 1]}]")
            plays(page, [0, 3])
            page.value(
                "{ const b = $('dream').getBoundingClientRect(); const at = {buttons: 1, clientX: b.left + b.width / 4,"
                "clientY: b.bottom}; $('dream').dispatchEvent(new PointerEvent('pointermove', at)) }"
            )
            plays(page, [-0.5, 0])
            page.value("dispatchEvent(new PointerEvent('pointerup'))")
            plays(page, [0, 3])


def test_gymnasiums_player_takes_the_dream_and_its_keys(toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    played: list[int] = []

    def after(*step: Any) -> None:
        played.append(int(step[2]))
        if len(played) == 2:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=ord("2")))
        if len(played) == 6:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    env = gym.make("VideoGPTDream-v0", model=toy_run, render_mode="rgb_array")
    gym.utils.play.play(env, callback=after, fps=1000, noop=0, seed=0)
    assert played == [0, 0, 2, 2, 2, 2]
