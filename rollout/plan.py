"""Plan in the dream, act in the engine: the cross-entropy method through `fork`.

    python rollout/plan.py --preset health_gathering_supreme
    python rollout/plan.py --world pushing    # rollout/planning/visual_foresight.py: push an object to a goal that is
    given by pixels python rollout/plan.py --world pushing --object 3 --goal 40 20    # this one, to that row and column

Every `replan_every` steps the last real frames become a dream, forked into futures that follow the candidates of
`rollout/planning/cem.py`, and the first actions of the plan are played. What a future of Doom is worth is in
`rollout/planning/terminal_value.py`. Beside it a random policy and those that ship play the same episodes.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from configs import command
from envs.dream import DreamEnv
from envs.policies import load_player, shipped_policies
from envs.vizdoom import make_engine
from rollout.episodes import play_episode
from rollout.planning import visual_foresight
from rollout.planning.cem import CEMConfig, check_action_spec
from rollout.planning.planner import Planner
from rollout.planning.terminal_value import TerminalValue, survival_value
from worldmodel.metrics.interval import bootstrap
from worldmodel.models.loading import PRETRAINED
from worldmodel.utils.checkpoint import write_json
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision
from worldmodel.utils.settings import AtLeast2, Count, NotNegative, Positive, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Plan in a dream and act in its engine."""

    run: str = ""
    """Run folder of the dream; by default the model that ships for the world, or else runs/<world>."""
    world: str = "health_gathering_supreme"
    """World of the dream."""
    policy: str = ""
    """Policy to compare with; by default those that ship for the world."""
    episodes: AtLeast2 = 5
    """Episodes of each."""
    replan_every: Positive = 2
    """Steps that are played before the next plan."""
    context_frames: AtLeast2 = 8
    """Frames that a dream is given, fewer at the start of an episode."""
    precision: Precision = "float32"
    """Of the dream."""
    temperature: NotNegative = 1.0
    """Of the dream; below 1 futures differ less by chance."""
    value_policy: str = ""
    """Policy whose critic says what the end of a future is worth: a folder, or one that ships."""
    health_weight: float = 1.0
    """Without a critic: worth of a point of HEALTH at the end of a future."""
    object: Count | None = None
    """In the world of pushing: number of the object to push, from 0 on; by default drawn for each episode."""
    goal: tuple[Count, Count] | None = None
    """And row and column of the pixel to push it to."""
    cem: CEMConfig = field(default_factory=CEMConfig)
    seed: Seed = 0
    out: Path = Path("runs/plan.json")
    """Where the scores go."""


def main(args: Args) -> None:
    own = Path("runs") / args.world
    run = args.run or ("" if (PRETRAINED / args.world).exists() or not own.is_dir() else str(own))
    dream = DreamEnv(model=run, world=args.world, horizon=0, precision=args.precision, temperature=args.temperature)
    if dream.vector_env.dream.stride > 1:
        raise UserError("plans are of single steps; this dream has a time stride")
    check_action_spec(dream.env_spec.action)
    pushing, push_goal = (
        dream.env_spec.env_id == "BAIRPushing-v0",
        visual_foresight.PushGoal(object=args.object, goal=args.goal),
    )
    if pushing and args.value_policy:
        raise UserError("what a future of pushing is worth is seen in its frames; leave --value-policy out")
    if not pushing and push_goal != visual_foresight.PushGoal():
        raise UserError(f"{dream.env_spec.name} has nothing to push; leave --object and --goal to --world pushing")
    planner = partial(Planner, dream, replan_every=args.replan_every, context_frames=args.context_frames, cem=args.cem)
    if pushing:
        text, scores = visual_foresight.score_planning(
            dream, planner, args.policy or "pushing", args.episodes, args.seed, push_goal
        )
    else:
        terminal_value = (
            TerminalValue.from_policy(args.value_policy, dream.env_spec)
            if args.value_policy
            else TerminalValue((("HEALTH", args.health_weight),))
        )
        text, scores = plan_in_engine(args, dream, planner(partial(survival_value, terminal_value=terminal_value)))
    print(text)
    settings = asdict(args) | {"out": str(args.out)}
    write_json(args.out, {"settings": settings, "scores": scores})


def plan_in_engine(args: Args, dream: DreamEnv, planner: Planner) -> tuple[str, dict[str, list]]:
    """Survival and return of a random policy, of those that ship, and of planning."""
    env_spec, scores = dream.env_spec, {}
    rivals = (args.policy,) if args.policy else shipped_policies(env_spec.name)
    with contextlib.closing(make_engine(env_spec)) as env:
        players = {name: load_player(name, env_spec) for name in ("random", *rivals)}
        for name, player in players.items():
            scores[name] = np.array([play_episode(env, player, args.seed, i) for i in range(args.episodes)])

        def plan(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.array([planner.act(frames[-1, 0], env.variable_values.tolist(), rng)])

        planned = []
        for i in (progress := tqdm(range(args.episodes), unit=" episodes", desc="plan")):
            planner.reset()
            planned.append(play_episode(env, plan, args.seed, i))
            progress.set_postfix(survived=f"{np.mean(planned, axis=0)[0]:.0f} steps")
        scores["planned"] = np.array(planned)
    skip = env.frame_skip
    lines = [
        f"{name:30} survives {bootstrap(played[:, 0] * skip)} tics, return {played[:, 1].mean():.1f}"
        for name, played in scores.items()
    ]
    return "\n".join(lines), {k: v.tolist() for k, v in scores.items()}


if __name__ == "__main__":
    command(main, "plan")
