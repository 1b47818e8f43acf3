"""Play a dream with the keyboard next to its engine, on a local web page.

    python rollout/play.py                       # then open http://127.0.0.1:8000
    python rollout/play.py --world take_cover

The engine plays a few steps, and its frames become the context of the dream. From there both get the same actions. The
dream can be rewound and forked. The engine cannot, so it waits until the dream reaches its step again. The page
requests one step at a time, so it runs at the speed of the dream, at most at the recorded frame rate.

    GET  /            the page
    POST /reset       {"seed": 1}
    POST /step        {"action": 2}
    POST /rewind      {"steps": 10}
    POST /fork        saves the current state
    POST /goto        {"fork": 0}     returns to a saved state
    POST /state       changes nothing

Each request returns the state as JSON, with frames as PNG. Request bodies are JSON with the matching Content-Type.
`rollout/server.py` describes which requests are refused.
"""

from __future__ import annotations

import base64
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from configs import command
from envs.dream import DreamEnv
from envs.keys import keys_to_actions
from envs.recorded_env import make_recorded_env
from rollout.server import PageServer
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.settings import Positive, Range, Seed, Settings

PAGE = Path(__file__).with_name("play.html")
TAKES = {"reset": ("seed",), "step": ("action",), "rewind": ("steps",), "fork": (), "goto": ("fork",), "state": ()}
"""Commands and the names of their integer arguments."""
FORKS = 32
"""Largest number of forks; each one keeps a snapshot in memory and adds an image to every response."""

Moment = tuple[dict[str, Any], int, dict[str, Any]]
"""A dream's snapshot, its step, and what it told there."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Serve a local web page to play a dream with the keyboard."""

    run: str = ""
    """Run folder of the dream, or hf://owner/name; by default the model that ships for `world`."""
    world: str = "health_gathering_supreme"
    """Name of the model that ships; used without a run folder."""
    context_frames: Positive = 8
    """Frames of the engine that the dream starts from."""
    max_rewind: Annotated[int, Range(0, 10_000)] = 300
    """Largest number of steps that can be rewound."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port of the page, reachable from this machine only; 0 uses a free port."""
    trust_env: bool = False
    """Allow an engine that is not part of this project. The run folder names it. This imports and runs its code, so
    use it only if you trust the author of the run."""
    seed: Seed = 0
    """Seed of the first episode."""


class Session:
    """A dream and its engine, played with the same actions."""

    def __init__(self, args: Args) -> None:
        self.args, self.lock = args, threading.Lock()
        self.dream = DreamEnv(model=args.run, world=args.world, horizon=0)
        env_spec = self.dream.env_spec
        if self.dream.vector_env.dream.stride > 1:
            raise UserError("this dream has a time stride above 1 and cannot be played; use a run with a stride of 1")
        if env_spec.action.kind != "Discrete":
            raise UserError(
                f"{env_spec.name} has actions {env_spec.action}, but keys need a Discrete space; play another "
                "environment"
            )
        self.engine = make_recorded_env(env_spec, args.trust_env)
        try:
            self.reset(args.seed)
        except BaseException:
            self.engine.close()
            raise

    def answer(self, command: str, **told: int) -> dict[str, Any]:
        """Handle one command and return the state; commands run one at a time."""
        with self.lock:
            if command != "state":
                getattr(self, command)(**told)
            return self.state()

    def close(self) -> None:
        with self.lock:
            self.engine.close()

    def reset(self, seed: int) -> None:
        """Start dream and engine from the same frames."""
        if not 0 <= seed < 2**31:
            raise UserError(f"seed must be from 0 to {2**31 - 1}, not {seed}")
        self.engine_over = True  # unless all goes well
        actions = [self.dream.action_space.sample() * 0] * (self.args.context_frames - 1)
        with one_sentence():
            frame, info = self.engine.reset(seed=seed)
            frames, infos = [frame], [info]
            for action in actions:
                frame, _, over, cut, info = self.engine.step(action)
                frames.append(frame)
                infos.append(info)
                if over or cut:
                    raise UserError(f"the engine's episode ended within {len(frames)} frames; lower --context-frames")
            variables = [[told[v] for v in self.dream.env_spec.variables] for told in infos]
        options = {"frames": np.stack(frames), "actions": np.array(actions), "variables": variables}
        _, told = self.dream.reset(seed=seed, options=options)
        self.engine_frame, self.engine_info, self.engine_over = frames[-1], infos[-1], False
        self.engine_time = self.time = 0
        self.step_info: dict[str, Any] = told | {"reward": 0.0, "over": False}
        self.rate = 0.0
        self.history: deque[Moment] = deque(maxlen=self.args.max_rewind)
        self.forks: list[tuple[Moment, str]] = []

    def snapshot(self) -> Moment:
        return self.dream.snapshot(), self.time, dict(self.step_info)

    def restore(self, moment: Moment) -> None:
        self.dream.restore(moment[0])
        self.time, self.step_info = moment[1], dict(moment[2])

    def step(self, action: int) -> None:
        before, start = self.snapshot(), time.perf_counter()
        _, reward, terminated, _, info = self.dream.step(action)
        rate = 1 / (time.perf_counter() - start)
        self.rate = 0.9 * self.rate + 0.1 * rate if self.rate else rate
        self.history.append(before)
        self.time += 1
        self.step_info = info | {"reward": reward, "over": self.step_info["over"] or terminated}
        if self.time > self.engine_time and not self.engine_over:
            self.engine_over = True  # unless all goes well
            with one_sentence():
                self.engine_frame, _, terminated, truncated, self.engine_info = self.engine.step(action)
            self.engine_time, self.engine_over = self.time, terminated or truncated

    def rewind(self, steps: int) -> None:
        if steps < 0:
            raise UserError(f"steps to take back must be at least 0, not {steps}")
        if taken := [self.history.pop() for _ in range(min(steps, len(self.history)))]:
            self.restore(taken[-1])

    def fork(self) -> None:
        if len(self.forks) == FORKS:
            raise UserError(f"there are already {FORKS} forks, the most that are kept; reset removes them")
        self.forks.append((self.snapshot(), png(self.dream.vector_env.frames[0])))

    def goto(self, fork: int) -> None:
        if not 0 <= fork < len(self.forks):
            raise UserError(f"there is no fork {fork}, only {len(self.forks)} forks counted from 0; choose one of them")
        self.history.append(self.snapshot())
        self.restore(self.forks[fork][0])

    def state(self) -> dict[str, Any]:
        """The state as the page shows it."""
        env_spec, frame = self.dream.env_spec, self.dream.vector_env.frames[0]
        codes = self.dream.vector_env.dream.prior.config.codes_per_frame
        figures = {
            "step": self.time,
            "dreamed frames/s": round(self.rate, 1),
            "entropy, bits a code": round(self.step_info.get("entropy", 0.0) / math.log(2) / codes, 2),
            "predicted reward": round(self.step_info["reward"], 2),
        }
        figures |= {f"predicted {v.lower()}": round(self.step_info[v], 1) for v in env_spec.variables}
        figures |= {f"{v.lower()} in the engine": float(self.engine_info[v]) for v in env_spec.variables}
        over = [name for name, end in (("dream", self.step_info["over"]), ("engine", self.engine_over)) if end]
        return {
            "dream": png(frame),
            "engine": png(self.engine_frame),
            "figures": figures,
            "over": over,
            "forks": [picture for _, picture in self.forks],
            "fps": env_spec.fps / self.dream.vector_env.dream.stride,
            "keys": keys_to_actions(env_spec),
            "world": env_spec.name,
        }


def png(frame: np.ndarray) -> str:
    data = BytesIO()
    Image.fromarray(frame).save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn any error of an engine into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the engine failed ({type(error).__name__}: {one_line(error)}); reset restarts it") from error


def serve(args: Args) -> PageServer:
    page, session = PAGE.read_bytes(), Session(args)
    try:
        return PageServer(args.port, page, TAKES, session.answer, session.close)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {args.port} cannot be used ({error}); choose another one with --port") from None


def main(args: Args) -> None:
    with serve(args) as server:
        try:
            print(f"play at http://127.0.0.1:{server.server_port} (Ctrl-C to stop)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:  # or SIGTERM
            print()


if __name__ == "__main__":
    command(main, "play")
