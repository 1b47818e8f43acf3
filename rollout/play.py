"""Play a dream, next to its engine if there is one, on a local web page.

    python rollout/play.py                       # then open http://127.0.0.1:8000
    python rollout/play.py --world take_cover
    python rollout/play.py --run runs/mine --no-engine

The engine plays a few steps, and its frames become the context of the dream. From there both get the same actions. The
dream can be rewound and forked. The engine cannot, so it waits until the dream reaches its step again. Without an
engine the dream starts from one of its own contexts.

Actions come from keys. Where an action has several numbers, they also come from sliders, the mouse and a gamepad. The
page requests one step at a time, so it runs at the speed of the dream, at most at the recorded frame rate.

    GET  /            the page
    POST /reset       {"seed": 1}
    POST /step        {"action": 2}, or a list of numbers where an action has several
    POST /rewind      {"steps": 10}
    POST /fork        saves the current state
    POST /goto        {"fork": 0}     returns to a saved state
    POST /state       changes nothing

Each request returns the state as JSON, with frames as PNG. Request bodies are JSON with the matching Content-Type.
`rollout/server.py` describes which requests are refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from envs.dream import DreamEnv
from envs.recorded_env import make_recorded_env
from rollout.play_session import Engine, Session
from rollout.server import PageServer, open_page
from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError
from worldmodel.utils.run_args import DreamArgs
from worldmodel.utils.settings import Positive, Range, Seed

PAGE = Path(__file__).with_name("play.html")
TAKES: dict[str, dict[str, Any]] = {
    "reset": {"seed": int},
    "step": {"action": int | list},
    "rewind": {"steps": int},
    "fork": {},
    "goto": {"fork": int},
    "state": {},
}
"""Commands and their arguments."""


@dataclass(frozen=True, kw_only=True)
class Args(DreamArgs):
    """Serve a local web page to play a dream."""

    context_frames: Positive = 8
    """Frames of the engine that the dream starts from."""
    max_rewind: Annotated[int, Range(0, 10_000)] = 300
    """Largest number of steps that can be rewound."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port of the page, reachable from this machine only; 0 uses a free port."""
    engine: bool = True
    """Play beside the engine; with --no-engine the dream is played alone, from its own contexts."""
    trust_env: bool = False
    """Allow an engine that is not part of this project. The run folder names it. This imports and runs its code, so
    use it only if you trust the author of the run."""
    seed: Seed = 0
    """Seed of the first episode."""


def make_engine(args: Args, env_spec: EnvSpec) -> Engine | None:
    """The engine of the recorded environment; None with --no-engine, or if it cannot be made, which is printed."""
    if not args.engine:
        return None
    try:
        env = make_recorded_env(env_spec, args.trust_env)
    except UserError as error:
        print(f"playing without the engine: {error}")
        return None
    return Engine(env, args.context_frames, env_spec.variables)


def make_session(args: Args) -> Session:
    dream = DreamEnv(model=args.run, world=args.world, horizon=0)
    if dream.vector_env.dream.stride > 1:
        raise UserError("this dream has a time stride above 1 and cannot be played; use a run with a stride of 1")
    return Session(dream, make_engine(args, dream.env_spec), args.max_rewind, args.seed)


def serve(args: Args) -> PageServer:
    return open_page(args.port, PAGE, TAKES, make_session(args))


def main(args: Args) -> None:
    with serve(args) as server:
        server.run("play")


if __name__ == "__main__":
    command(main, "play")
