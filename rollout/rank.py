"""Does a dream rank policies in the same order as the engine?

    python rollout/rank.py --world take_cover --policy take_cover take_cover@0.3 take_cover@0.6 random
    python rollout/rank.py --run runs/mine --policy runs/weak runs/middling runs/strong
    python rollout/rank.py --world take_cover --policy cycle:0x1 cycle:1x8,2x8 cycle:1x20,2x20

`folder@0.3` is a policy with 30% random actions, which gives policies of different strength. `cycle:1x20,2x20` repeats
action 1 for 20 steps, then 2 for 20 steps; it tests simple strategies that no policy may have found yet. Each policy
plays the same number of whole episodes in the dream and in the engine. The result is Spearman's correlation of the mean
returns, with a 95% interval over 2,000 bootstrap resamples: of the engine's episodes, and of the dream's starting
contexts, because dreams from the same start are alike.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from scipy.stats import spearmanr

import envs  # noqa: F401 - registers
from configs import command
from configs.written import Written
from envs.policies import MAX_STACKED_FRAMES, Player, load_player
from envs.vector import DreamVectorEnv
from envs.vizdoom import VizdoomFrames, make_engine
from rollout.episodes import play_episode, start_contexts
from rollout.verdicts import judge_ranking
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import DreamArgs
from worldmodel.utils.settings import AtLeast2, NotNegative, Seed


@dataclass(frozen=True, kw_only=True)
class Args(DreamArgs):
    """Rank policies in a dream and in the engine."""

    policy: tuple[str, ...] = ()
    """Policies to rank, at least 3: folders, names, "random", or cycles of actions. Names are those of
    pretrained policies; a folder or a name may end in @0.3 for 30% random actions."""
    episodes: AtLeast2 = 64
    """Episodes per policy in the dream, and as many in the engine."""
    temperature: NotNegative = 1.0
    """Sampling temperature of the dream."""
    precision: Precision = "float32"
    """Precision of the dream's models."""
    seed: Seed = 0
    """Seed of the episodes, the actions and the resampling."""
    out: Path = Path("runs/rank.json")
    """File for the scores."""


def returns_in_dream(env: DreamVectorEnv, player: Player, seed: int) -> np.ndarray:
    """The return (n,) of the first episode of each lane.

    Lanes start from contexts at the start of an episode. The steps of the context do not count.
    """
    rng, options = np.random.default_rng(seed), {"context": start_contexts(env)}
    frames = deque([env.reset(seed=seed, options=options)[0]], maxlen=MAX_STACKED_FRAMES)
    total, playing = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
    while playing.any():
        frame, rewards, terminated, truncated, _ = env.step(player(np.stack(frames), rng))
        frames.append(frame)
        total += rewards * playing
        playing &= ~(terminated | truncated)
    return total


def returns_in_engine(env: VizdoomFrames, player: Player, episodes: int, seed: int) -> np.ndarray:
    """The return (n,) of each episode."""
    return np.array([play_episode(env, player, seed, i)[1] for i in range(episodes)])


def rank_correlation(
    dream: np.ndarray, engine: np.ndarray, starts: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """Spearman's correlation of the mean scores, and the bounds of its interval.

    Args:
        dream: Scores (policies, episodes) in the dream.
        engine: Scores (policies, episodes) in the engine.
        starts: Starting context (episodes,) of the dream's episodes, which are resampled together.
        seed: Seed of the resampling.
    """
    rng, drawn = np.random.default_rng(seed), []
    groups, episodes = np.unique(starts, return_inverse=True)[1], np.arange(engine.shape[1])
    for _ in range(2000):
        means = resampled_mean(dream, groups, rng), resampled_mean(engine, episodes, rng)
        drawn.append(spearmanr(*means).statistic)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(spearmanr(dream.mean(1), engine.mean(1)).statistic), float(low), float(high)


def resampled_mean(scores: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean (policies,) of scores (policies, episodes), after drawing groups of episodes with replacement."""
    n = groups.max() + 1
    return np.average(scores, axis=1, weights=np.bincount(rng.integers(n, size=n), minlength=n)[groups])


def main(args: Args) -> Written:
    if (several := len(set(args.policy))) < 3:
        raise UserError(f"ranking needs at least 3 policies, not {several}; give more with --policy")
    dream = DreamVectorEnv(
        args.episodes, args.run, world=args.world, temperature=args.temperature, precision=args.precision
    )
    env_spec, scores = dream.env_spec, {}
    with contextlib.closing(make_engine(env_spec)) as engine:
        players = {name: load_player(name, env_spec) for name in args.policy}
        print(f"{'policy':40}{'dream':>10}{'engine':>10}")
        for name, player in Progress(players.items(), unit=" policies"):
            scores[name] = (
                returns_in_dream(dream, player, args.seed),
                returns_in_engine(engine, player, args.episodes, args.seed),
            )
            Progress.write(f"{name[-39:]:40}{scores[name][0].mean():>10.1f}{scores[name][1].mean():>10.1f}")
    a, b = (np.stack([pair[k] for pair in scores.values()]) for k in (0, 1))
    r, low, high = rank_correlation(a, b, start_contexts(dream), args.seed)
    print(judge_ranking(r, low, high, len(scores)))
    rows = {name: {"dream": x.tolist(), "engine": y.tolist()} for name, (x, y) in scores.items()}
    write_json(args.out, {"settings": asdict(args), "spearman": [r, low, high], "returns": rows})
    return Written(args.out)


if __name__ == "__main__":
    command(main, "rank")
