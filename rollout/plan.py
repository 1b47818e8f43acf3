"""Plan in the dream, act in the engine: the cross-entropy method through `fork`.

    python rollout/plan.py --world take_cover

Every `every` steps the last real frames become a dream, forked into `candidates` futures. Each follows actions drawn
from a distribution for each step of the horizon; the distribution moves towards the best `elite` of them, `rounds`
times, and the likeliest first actions are played. A future is worth its predicted return, plus `health` for each point
of HEALTH that is left at its end, since a short horizon seldom sees a death. Beside it a random policy and one that
ships play the same episodes.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from configs import command
from envs.dream import DreamEnv
from envs.policies import load_player, shipped_policies
from envs.vizdoom import engine_of
from rollout.policy import play
from worldmodel.checkpoint import write_json
from worldmodel.dream import Precision
from worldmodel.errors import UserError
from worldmodel.metrics.interval import bootstrap


@dataclass(frozen=True, kw_only=True)
class Cem:
    """The cross-entropy method over discrete actions."""

    candidates: int = 32
    """Futures of a round."""
    elite: int = 6
    """Of them, those that the distribution moves towards."""
    rounds: int = 2
    horizon: int = 8
    """Steps of a future."""
    hold: int = 2
    """Steps for which an action of a future is held."""
    health: float = 1.0
    """Worth of a point of HEALTH at the end of a future."""
    momentum: float = 0.2
    """Share of the old distribution in the new one."""

    def __post_init__(self) -> None:
        if min(self.elite, self.rounds, self.horizon, self.hold) < 1 or self.elite > self.candidates:
            raise UserError("elite, rounds, horizon and hold must be at least 1, and elite at most candidates")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"momentum must lie between 0 and 1, not at {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class Args:
    """Plan in a dream and act in its engine."""

    run: str = ""
    """Run folder of the dream; by default the model that ships."""
    world: str = "health_gathering_supreme"
    """World of the model that ships."""
    policy: str = ""
    """Policy to compare with; by default those that ship for the world."""
    episodes: int = 5
    """Episodes of each."""
    every: int = 2
    """Steps that are played before the next plan."""
    context: int = 8
    """Frames that a dream is given, fewer at the start of an episode."""
    precision: Precision = "float32"
    """Of the dream."""
    cem: Cem = field(default_factory=Cem)
    seed: int = 0
    out: Path = Path("runs/plan.json")
    """Where the scores go."""

    def __post_init__(self) -> None:
        if self.context < 2 or self.every < 1 or self.episodes < 2:
            raise UserError("context and episodes must be at least 2, and every at least 1")


class Planner:
    """A player that remembers the last frames of its episode."""

    def __init__(self, args: Args, dream: DreamEnv) -> None:
        self.args, self.dream = args, dream
        self.begin()

    def begin(self) -> None:
        self.frames: deque[np.ndarray] = deque(maxlen=self.args.context)
        self.actions: deque[int] = deque(maxlen=self.args.context - 1)
        self.variables: deque[list[float]] = deque(maxlen=self.args.context)
        self.ready: list[int] = []

    def act(self, frame: np.ndarray, variables: list[float], rng: np.random.Generator) -> int:
        """The next action; plans when none is ready."""
        self.frames.append(frame)
        self.variables.append(variables)
        if not self.ready:
            self.ready = self.plan(rng)[: self.args.every].tolist()
        self.actions.append(self.ready.pop(0))
        return self.actions[-1]

    def plan(self, rng: np.random.Generator) -> np.ndarray:
        """The best sequence of actions (horizon,) from here."""
        given = min(len(self.frames), len(self.actions) + 1)
        frames, actions = list(self.frames)[-given:], list(self.actions)[len(self.actions) - given + 1 :]
        options = {
            "frames": np.stack(frames),
            "actions": np.array(actions, int),
            "variables": list(self.variables)[-given:],
        }
        self.dream.reset(seed=int(rng.integers(2**31)), options=options)
        return cem(self.dream, self.args.cem, rng)


def cem(dream: DreamEnv, how: Cem, rng: np.random.Generator) -> np.ndarray:
    """The likeliest actions (horizon,) after all rounds."""
    n = dream.world.action.nvec[0]
    slots = -(-how.horizon // how.hold)
    odds = np.full((slots, n), 1 / n)
    for _ in range(how.rounds):
        picks = np.stack([rng.choice(n, size=how.candidates, p=p) for p in odds], axis=1)
        worth = value(dream, picks.repeat(how.hold, 1)[:, : how.horizon], how, int(rng.integers(2**31)))
        best = picks[np.argsort(-worth)[: how.elite]]
        share = np.stack([np.bincount(best[:, s], minlength=n) for s in range(slots)]) / how.elite
        odds = how.momentum * odds + (1 - how.momentum) * share
    return odds.argmax(1).repeat(how.hold)[: how.horizon]


def value(dream: DreamEnv, actions: np.ndarray, how: Cem, seed: int) -> np.ndarray:
    """(n,) the worth of action sequences (n, horizon), each in a future of its own."""
    fork = dream.fork(len(actions), seed)
    total, alive = np.zeros(len(actions)), np.ones(len(actions), bool)
    for t in range(actions.shape[1]):
        rewards, terminated, _, _ = fork.advance(actions[:, t])
        total += rewards * alive
        alive &= ~terminated
    if "HEALTH" in dream.world.variables:
        total += how.health * fork.variables[:, dream.world.variables.index("HEALTH")] * alive
    return total


def main(args: Args) -> None:
    dream = DreamEnv(model=args.run, world=args.world, horizon=0, precision=args.precision)
    world, scores = dream.world, {}
    if world.action.kind != "Discrete" or dream.vector.dream.stride > 1:
        raise UserError("plans are of single steps with discrete actions; this dream has others")
    planner, rivals = Planner(args, dream), (args.policy,) if args.policy else shipped_policies(world.name)
    with contextlib.closing(engine_of(world)) as env:
        players = {name: load_player(name, world) for name in ("random", *rivals)}
        for name, player in players.items():
            scores[name] = np.array([play(env, player, args.seed, i) for i in range(args.episodes)])
        bar = tqdm(range(args.episodes), unit=" episodes", desc="plan")

        def plan(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.array([planner.act(frames[-1, 0], env.values.tolist(), rng)])

        planned = []
        for i in bar:
            planner.begin()
            planned.append(play(env, plan, args.seed, i))
        scores["planned"] = np.array(planned)
    skip = world.env_kwargs["frame_skip"]
    for name, played in scores.items():
        print(f"{name:30} survives {bootstrap(played[:, 0] * skip)} tics, return {played[:, 1].mean():.1f}")
    settings = asdict(args) | {"out": str(args.out)}
    write_json(args.out, {"settings": settings, "scores": {k: v.tolist() for k, v in scores.items()}})


if __name__ == "__main__":
    command(main, "plan")
