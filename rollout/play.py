"""Play a dream with the keyboard, next to the engine under the same keys, on a page of this machine.

    python rollout/play.py                       # then open http://127.0.0.1:8000
    python rollout/play.py --world take_cover

The engine plays a few steps, its frames become the dream's context, and from there both get the same actions. The
dream can be taken back and forked; the engine cannot, and waits until the dream is as far as it was. The page asks for
one step after the other, so it runs as fast as the dream does, at most at the recorded rate.

    GET  /            the page
    POST /reset       {"seed": 1}
    POST /step        {"action": 2}
    POST /rewind      {"steps": 10}
    POST /fork        keeps this moment
    POST /goto        {"fork": 0}     goes back to one that was kept
    POST /state       changes nothing

Each answers with the state as JSON: frames as PNG, and the figures below them.
"""

from __future__ import annotations

import base64
import json
import math
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import gymnasium as gym
import numpy as np
from PIL import Image

import envs  # noqa: F401 - registers
from configs import command
from envs.dream import DreamEnv
from envs.keys import keys
from worldmodel.errors import UserError
from worldmodel.settings import Count, Positive, Range, Seed, Settings

PAGE = Path(__file__).with_name("play.html")


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Serve a page to play a dream."""

    run: str = ""
    """Run folder of the dream; by default the model that ships."""
    world: str = "health_gathering_supreme"
    """World of the model that ships."""
    context: Positive = 8
    """Frames of the engine that the dream begins with."""
    history: Count = 300
    """Steps that can be taken back."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Of the page, on this machine only; 0 takes a free one."""
    seed: Seed = 0


class Session:
    """A dream and its engine under one pair of hands."""

    def __init__(self, args: Args) -> None:
        self.args, self.lock = args, threading.Lock()
        self.dream = DreamEnv(model=args.run, world=args.world, horizon=0)
        world = self.dream.world
        if not world.env_id:
            raise UserError(f"{world.name} does not say which environment it was recorded from; there is no engine")
        if self.dream.vector.dream.stride > 1:
            raise UserError("a dream with a time stride cannot be played beside its engine")
        if world.action.kind != "Discrete":
            raise UserError(
                f"a key is one choice of several, but {world.name} takes {world.action}; play another world"
            )
        self.engine = gym.make(world.env_id, **world.env_kwargs)
        self.reset(args.seed)

    def reset(self, seed: int) -> None:
        """Begin both from the same frames."""
        frame, info = self.engine.reset(seed=seed)
        frames, actions, infos = [frame], [], [info]
        while len(frames) < self.args.context:
            actions.append(self.dream.action_space.sample() * 0)
            frame, _, over, cut, info = self.engine.step(actions[-1])
            if over or cut:
                raise UserError(f"the engine's episode ended within {len(frames) + 1} frames; lower --context")
            frames.append(frame)
            infos.append(info)
        variables = [[told[v] for v in self.dream.world.variables] for told in infos]
        options = {"frames": np.stack(frames), "actions": np.array(actions), "variables": variables}
        _, told = self.dream.reset(seed=seed, options=options)
        self.engine_frame, self.engine_info, self.engine_over = frames[-1], infos[-1], False
        self.engine_time = self.time = 0
        self.told: dict[str, Any] = told | {"reward": 0.0, "over": False}
        self.rate = 0.0
        self.past: deque[tuple[Any, ...]] = deque(maxlen=self.args.history)
        self.forks: list[tuple[Any, ...]] = []

    def moment(self) -> tuple[Any, ...]:
        return self.dream.snapshot(), self.time, dict(self.told)

    def go(self, moment: tuple[Any, ...]) -> None:
        self.dream.restore(moment[0])
        self.time, self.told = moment[1], dict(moment[2])

    def step(self, action: int) -> None:
        before, begin = self.moment(), time.perf_counter()
        _, reward, terminated, _, info = self.dream.step(action)
        rate = 1 / (time.perf_counter() - begin)
        self.rate = 0.9 * self.rate + 0.1 * rate if self.rate else rate
        self.past.append(before)
        self.time += 1
        self.told = info | {"reward": reward, "over": self.told["over"] or terminated}
        if self.time > self.engine_time and not self.engine_over:
            self.engine_frame, _, terminated, truncated, self.engine_info = self.engine.step(action)
            self.engine_time, self.engine_over = self.time, terminated or truncated

    def rewind(self, steps: int) -> None:
        steps = min(steps, len(self.past))
        if steps > 0:
            self.go([self.past.pop() for _ in range(steps)][-1])

    def fork(self) -> None:
        self.forks.append(self.moment())

    def goto(self, fork: int) -> None:
        if not 0 <= fork < len(self.forks):
            raise UserError(f"there are {len(self.forks)} forks, but number {fork} was asked for")
        self.past.append(self.moment())
        self.go(self.forks[fork])

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        world, frame = self.dream.world, self.dream.vector.frames[0]
        codes = self.dream.vector.dream.prior.config.frame
        figures = {
            "step": self.time,
            "dreamed frames/s": round(self.rate, 1),
            "entropy, bits a code": round(self.told.get("entropy", 0.0) / math.log(2) / codes, 2),
            "predicted reward": round(self.told["reward"], 2),
        }
        figures |= {f"predicted {v.lower()}": round(self.told[v], 1) for v in world.variables}
        figures |= {f"{v.lower()} in the engine": self.engine_info[v] for v in world.variables}
        over = [name for name, end in (("dream", self.told["over"]), ("engine", self.engine_over)) if end]
        return {
            "dream": png(frame),
            "engine": png(self.engine_frame),
            "figures": figures,
            "over": over,
            "forks": [png(moment[0]["frames"][0]) for moment in self.forks],
            "fps": world.fps / self.dream.vector.dream.stride,
            "keys": keys(world),
            "world": world.name,
        }


def png(frame: np.ndarray) -> str:
    data = BytesIO()
    Image.fromarray(frame).save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def handler(session: Session) -> type[BaseHTTPRequestHandler]:
    """The page and its requests, one at a time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, "text/html; charset=utf-8", PAGE.read_bytes()) if self.path == "/" else self.answer(404)

        def do_POST(self) -> None:
            command = self.path.strip("/")
            try:
                told = dict(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"))
                with session.lock:
                    if command in ("reset", "step", "rewind", "fork", "goto"):
                        getattr(session, command)(**{k: int(v) for k, v in told.items()})
                    elif command != "state":
                        self.answer(404)
                        return
                    body = session.state()
            except (UserError, TypeError, ValueError, OverflowError, gym.error.Error) as error:
                self.answer(400, "application/json", json.dumps({"error": str(error)}).encode())
                return
            self.answer(200, "application/json", json.dumps(body).encode())

        def answer(self, status: int, kind: str = "text/plain", body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: a line for every frame helps nobody."""

    return Handler


def serve(args: Args) -> ThreadingHTTPServer:
    session = Session(args)
    try:
        return ThreadingHTTPServer(("127.0.0.1", args.port), handler(session))
    except (OSError, OverflowError) as error:
        session.engine.close()
        raise UserError(f"port {args.port} cannot be used ({error}); choose another with --port") from None


def main(args: Args) -> None:
    with serve(args) as server:
        print(f"play at http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    command(main, "play")
