"""Plan in a dream and act in its engine, with the cross-entropy method.

    python rollout/plan.py --preset health_gathering_supreme
    python rollout/plan.py --preset pushing                           # push objects to random goals
    python rollout/plan.py --preset pushing --object 3 --goal 40 20   # push object 3 to the pixel at row 40, column 20

Every `replan_every` steps a dream starts from the last real frames. It is forked into one future per candidate action
sequence (`rollout/planning/cem.py`), and the first actions of the best plan are played. Futures of Doom are scored by
`rollout/planning/terminal_value.py`, those of pushing by `rollout/planning/visual_foresight.py`. A random policy and
the pretrained policies play the same episodes for comparison.
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

from configs import command
from configs.written import Written
from envs.dream import DreamEnv
from envs.policies import load_player, shipped_policies
from rollout.episodes import play_episode
from rollout.planning.cem import CEMConfig, check_action_spec
from rollout.planning.planner import Planner
from rollout.planning.terminal_value import TerminalValue, survival_value
from rollout.verdicts import judge_player
from worldmodel.metrics.interval import bootstrap
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import DreamArgs
from worldmodel.utils.settings import AtLeast2, Count, NotNegative, Positive, Seed


@dataclass(frozen=True, kw_only=True)
class Args(DreamArgs):
    """Plan in a dream and act in its engine."""

    policy: str = ""
    """Policy to compare with, by default the pretrained ones of its environment."""
    episodes: AtLeast2 = 5
    """Episodes per policy and for planning."""
    replan_every: Positive = 2
    """Steps played before the next plan."""
    context_frames: Positive = 8
    """Real frames that a dream starts from; fewer at the start of an episode."""
    precision: Precision = "float32"
    """Precision of the dream's models."""
    temperature: NotNegative = 1.0
    """Sampling temperature of the dream; below 1 futures differ less by chance."""
    value_policy: str = ""
    """Policy whose value function scores the end of a future; by default HEALTH does. A folder, or a pretrained one."""
    health_weight: float = 1.0
    """Value of a point of HEALTH at the end of a future; used without value_policy."""
    object: Count | None = None
    """Number of the object to push, from 0; by default random in each episode. Only for pushing."""
    goal: tuple[Count, Count] | None = None
    """Pixel to push the object to, as row and column; by default random in each episode. Only for pushing."""
    cem: CEMConfig = field(default_factory=CEMConfig)
    """Settings of the cross-entropy method."""
    seed: Seed = 0
    """Seed of the episodes, the dreams and the plans."""
    out: Path = Path("runs/plan.json")
    """File for the scores."""


def main(args: Args) -> Written:
    dream = DreamEnv(
        model=args.run, world=args.world, horizon=0, precision=args.precision, temperature=args.temperature
    )
    if dream.vector_env.dream.stride > 1:
        raise UserError("this dream has a time stride above 1 and cannot be planned in; use a run with a stride of 1")
    check_action_spec(dream.env_spec.action)
    pushing = dream.env_spec.env_id == "BAIRPushing-v0"
    if pushing and args.value_policy:
        raise UserError("futures of pushing are scored by their frames, not by a policy; leave --value-policy out")
    if not pushing and (args.object, args.goal) != (None, None):
        raise UserError(f"{dream.env_spec.name} has nothing to push; leave --object and --goal out")
    planner = partial(Planner, dream, replan_every=args.replan_every, context_frames=args.context_frames, cem=args.cem)
    if pushing:
        from rollout.planning import visual_foresight  # imports MuJoCo, which other worlds do not need

        push_goal = visual_foresight.PushGoal(object=args.object, goal=args.goal)
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
    write_json(args.out, {"settings": asdict(args), "scores": scores})
    return Written(args.out)


def plan_in_engine(args: Args, dream: DreamEnv, planner: Planner) -> tuple[str, dict[str, list]]:
    """A table and the scores: survival and return of a random policy, the compared policies, and planning."""
    from envs.vizdoom import make_engine  # imports ViZDoom, which the robot does not need

    env_spec, scores = dream.env_spec, {}
    rivals = (args.policy,) if args.policy else shipped_policies(env_spec.name)
    with contextlib.closing(make_engine(env_spec)) as env:
        players = {name: load_player(name, env_spec) for name in ("random", *rivals)}
        for name, player in players.items():
            scores[name] = np.array([play_episode(env, player, args.seed, i) for i in range(args.episodes)])

        def plan(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.array([planner.act(frames[-1, 0], env.variable_values.tolist(), rng)])

        planned = []
        for i in (progress := Progress(range(args.episodes), unit=" episodes", desc="plan")):
            planner.reset()
            planned.append(play_episode(env, plan, args.seed, i))
            progress.set_postfix(survived=f"{np.mean(planned, axis=0)[0]:.0f} steps")
        scores["planned"] = np.array(planned)
    skip = env.frame_skip
    lines = [
        f"{name:30} survives {bootstrap(played[:, 0] * skip)} tics, return {played[:, 1].mean():.1f}"
        for name, played in scores.items()
    ]
    survived = {name: played[:, 0] * skip for name, played in scores.items()}
    ours = survived.pop("planned")
    lines += [
        judge_player("planning", bootstrap(ours - other), name, "more tics", "train the dream for longer")
        for name, other in survived.items()
    ]
    return "\n".join(lines), {k: v.tolist() for k, v in scores.items()}


if __name__ == "__main__":
    command(main, "plan")
