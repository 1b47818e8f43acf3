"""The page that plays a dream, through its own requests, and Gymnasium's own player."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium.utils.play
import numpy as np
import pytest
from PIL import Image

import envs  # noqa: F401 - registers
from rollout.play import PAGE, Args, serve
from tests.rollout.browser import CHROMIUM, Browser
from worldmodel.checkpoint import read_header, save_checkpoint
from worldmodel.errors import UserError
from worldmodel.models import load_prior

Ask = Callable[..., dict[str, Any]]


class ToyEngine(gym.Env):
    """The toy world itself: a bright square pushed left (1) and right (2)."""

    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.column = 1
        return self.frame(), {"COLUMN": 1.0}

    def frame(self) -> np.ndarray:
        frame = np.full((16, 16, 3), 40, np.uint8)
        frame[4:12, self.column * 4 : self.column * 4 + 4] = (250, 200, 60)
        return frame

    def step(self, action: int) -> tuple:
        self.column = (self.column + (0, -1, 1)[int(action)]) % 4
        return self.frame(), 1.0, False, False, {"COLUMN": float(self.column)}


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """The toy run, with an engine to its name."""
    folder = Path(shutil.copytree(toy_run, tmp_path / "run"))
    if "ToyEngine-v0" not in gym.registry:
        gym.register("ToyEngine-v0", entry_point=ToyEngine)
    config, progress = read_header(folder / "prior")
    config["world"] |= {"env_id": "ToyEngine-v0", "env_kwargs": {}}
    save_checkpoint(folder / "prior", load_prior(folder / "prior"), config, progress)
    return folder


@pytest.fixture
def ask(run: Path) -> Iterator[Ask]:
    server = serve(Args(run=str(run), port=0))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(path: str, **told: int) -> dict[str, Any]:
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(told).encode())) as answer:
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
    assert state["figures"]["step"] == 4
    assert state["figures"]["column in the engine"] == 2
    assert state["figures"]["predicted column"] == pytest.approx(2, abs=0.5)
    assert {"entropy, bits a code", "predicted reward", "dreamed frames/s"} <= state["figures"].keys()


def test_rewind_fork_and_reset(ask: Ask) -> None:
    begin = ask("state")
    there = ask("step", action=2)
    assert len(ask("fork")["forks"]) == 1
    ask("step", action=2)
    assert ask("rewind", steps=2)["dream"] == begin["dream"]
    back = ask("goto", fork=0)
    assert back["dream"] == there["dream"]
    assert back["figures"]["step"] == 1
    assert back["engine"] == ask("step", action=1)["engine"], "the engine waits at its second step"
    assert back["engine"] != ask("step", action=1)["engine"], "and goes on at its third"
    again = ask("reset", seed=0)
    assert (again["dream"], again["forks"]) == (begin["dream"], [])


def test_mistakes_are_answered_not_fatal(ask: Ask, run: Path, toy_run: Path) -> None:
    for path, told, sentence in (
        ("goto", {"fork": 3}, "there are 0 forks, but number 3"),
        ("step", {"action": 9}, "action 9 is outside"),
        ("step", {}, "action"),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(path, **told)
        assert sentence in json.loads(error.value.read())["error"]
    assert ask("state")["figures"]["step"] == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{ask.port}/") as page:  # type: ignore[attr-defined]
        assert page.read() == PAGE.read_bytes()
    with pytest.raises(UserError, match="cannot be used"):
        serve(Args(run=str(run), port=ask.port))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="there is no engine"):
        serve(Args(run=str(toy_run), port=0))


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to open the page in; the requests it makes are tested")
def test_the_page_in_a_browser(ask: Ask, tmp_path: Path) -> None:
    figure = (
        "+[...document.querySelectorAll('#figures tr')].find(r => r.innerText.startsWith({!r})).lastChild.innerText"
    )
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
        assert page.value(figure.format("dreamed frames/s")) > 0
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
    assert ask("state")["figures"]["step"] == 0


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
