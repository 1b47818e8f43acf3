"""Train a policy on frames to imitate a scripted expert (DAgger; Ross, Gordon and Bagnell, 2011).

    python train/imitate.py --preset battle2       # then: python train/policy.py --preset battle2

In Battle2 a random policy kills about one monster in 500 steps, too few for PPO to learn from within an hour on 2
cores. So the policy first imitates the expert of `envs.teacher`, which uses the engine's labels, and PPO continues from
there.

In the first round the expert plays. In later rounds the policy plays, and the expert labels every step with the action
it would have taken, so the policy learns to recover from its own mistakes. After each round the policy is trained on
the frames of all rounds, 3 GB at the end. Training takes ten minutes; an interrupted run starts over.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from gymnasium import spaces

from configs import command
from configs.written import Written
from envs.policies import MAX_STACKED_FRAMES, sample_actions, save_policy, stack_frames
from envs.teacher import Teacher
from envs.vizdoom import VizdoomFrames
from worldmodel.training.verdicts import judge_imitation
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Channels, NotNegative, Positive, Range, Seed, Settings

with extra("sb3"):
    from stable_baselines3.common.policies import ActorCriticCnnPolicy


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Train a policy to imitate the scripted expert of a scenario."""

    out: Path = Path("runs/battle2_imitation")
    """Folder for the policy."""
    scenario: str = "battle2"
    """ViZDoom scenario; only battle2 has an expert."""
    n_rounds: Positive = 6
    """Rounds of playing and training; in the first round the expert plays."""
    steps_per_round: Positive = 10_000
    """Environment steps per round."""
    n_epochs: Positive = 2
    """Passes over the frames of all rounds so far, after each round."""
    batch_size: Positive = 256
    """Observations per training step."""
    learning_rate: NotNegative = 1e-3
    """Learning rate of Adam."""
    n_stack: Annotated[int, Range(1, MAX_STACKED_FRAMES)] = 4
    """Number of stacked frames that the policy observes, 1 to 4."""
    features_dim: Channels = 128
    """Width of the last layer of the network."""
    num_envs: Positive = 8
    """Engines, stepped one after the other."""
    seed: Seed = 0
    """Seed of the episodes, the initial weights and the actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_round < self.num_envs:
            raise UserError(f"steps_per_round must be at least num_envs, {self.num_envs}, not {self.steps_per_round}")


class Lane:
    """One engine, its expert, and the last frames of its episode."""

    def __init__(self, args: Args, seed: int) -> None:
        self.env = VizdoomFrames(args.scenario)
        self.teacher, self.n_stack = Teacher(self.env, np.random.default_rng(seed)), args.n_stack
        self.restart(seed)

    def restart(self, seed: int | None = None) -> None:
        """Begin a new episode, and forget the kills of earlier ones."""
        self.kills: list[float] = []
        self._reset(seed)

    def _reset(self, seed: int | None = None) -> None:
        self.teacher.reset()
        self.frames = deque([self.env.reset(seed=seed)[0]], maxlen=self.n_stack)
        self.reward = 0.0

    def observation(self) -> np.ndarray:
        """The stacked frames (h, w, 3 n_stack)."""
        return stack_frames(np.stack(self.frames)[:, None], self.n_stack)[0]

    def step(self, action: np.ndarray) -> None:
        frame, reward, terminated, truncated, _ = self.env.step(action)
        self.frames.append(frame)
        self.reward += reward
        if terminated or truncated:
            self.kills.append(self.reward)
            self._reset()


def collect_round(
    lanes: list[Lane], policy: ActorCriticCnnPolicy | None, steps: int, rng: np.random.Generator
) -> tuple:
    """Observations (n, h, w, 3k) and the expert's actions (n, 5) for them. The policy plays; if None, the expert."""
    views, advice = [], []
    for _ in Progress(range(steps // len(lanes)), unit=" steps", unit_scale=len(lanes), desc="play", leave=False):
        views.append(np.stack([lane.observation() for lane in lanes]))
        advice.append(np.stack([lane.teacher.act() for lane in lanes]))
        actions = advice[-1] if policy is None else sample_actions(policy, views[-1], 0.0, rng)
        for lane, action in zip(lanes, actions, strict=True):
            lane.step(action)
    return np.concatenate(views), np.concatenate(advice)


def train_policy(policy: ActorCriticCnnPolicy, rounds: list[tuple], args: Args, rng: np.random.Generator) -> float:
    """Maximize the likelihood of the expert's actions; returns the loss of the last pass, in nats per action."""
    where = [(part, row) for part, (views, _) in enumerate(rounds) for row in range(len(views))]  # avoids a 3 GB copy
    losses: list[float] = []
    for _ in Progress(range(args.n_epochs), unit=" passes", desc="learn", leave=False):
        losses.clear()
        for batch in np.array_split(rng.permutation(len(where)), max(1, len(where) // args.batch_size)):
            views, advice = (np.stack([rounds[where[i][0]][k][where[i][1]] for i in batch]) for k in (0, 1))
            pixels = torch.from_numpy(views).permute(0, 3, 1, 2)
            likelihood = policy.get_distribution(pixels).log_prob(torch.from_numpy(advice))
            loss = -likelihood.mean()
            policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            policy.optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


def make_policy(args: Args, frame: tuple[int, int, int], actions: spaces.Space) -> ActorCriticCnnPolicy:
    """The same network as that of train/policy.py."""
    height, width, channels = frame
    image = spaces.Box(0, 255, (args.n_stack * channels, height, width), np.uint8)
    shape = {"features_dim": args.features_dim}
    policy = ActorCriticCnnPolicy(image, actions, lambda _: args.learning_rate, features_extractor_kwargs=shape)
    torch.nn.init.zeros_(policy.value_net.weight)  # imitation trains no values, and random ones would mislead PPO
    return policy


def main(args: Args) -> Written:
    with folder_lock(args.out):
        torch.manual_seed(args.seed)
        torch.set_num_threads(1)
        rng = np.random.default_rng(args.seed)
        lanes = [Lane(args, int(seed)) for seed in rng.integers(2**31, size=args.num_envs)]
        policy = make_policy(args, lanes[0].env.env_spec.frame_shape, lanes[0].env.action_space)
        rounds: list[tuple] = []
        scores: list[list[float]] = []  # kills in the whole episodes of each round
        for i in range(args.n_rounds):
            for lane in lanes if i else ():  # an episode that the expert began would not show what the policy can do
                lane.restart()
            rounds.append(collect_round(lanes, policy if i else None, args.steps_per_round, rng))
            killed = [kills for lane in lanes for kills in lane.kills]
            loss = train_policy(policy, rounds, args, rng)
            who = "policy" if i else "expert"
            scored = f"{np.mean(killed):.1f} kills in {len(killed)} episodes" if killed else "no whole episode"
            print(f"round {i + 1}: {scored} of the {who}, loss {loss:.3f}")
            scores.append(killed)
        settings = {name: value for name, value in asdict(args).items() if name != "out"}
        save_policy(args.out, policy, settings, {"steps": args.n_rounds * args.steps_per_round}, resumable=False)
        for lane in lanes:
            lane.env.close()
    if len(scores) > 1:
        print(f"{args.out}, before the last training: {judge_imitation(scores[-1], scores[0])}")
    same = {name: getattr(args, name) for name in ("scenario", "n_stack", "features_dim")}
    return Written(args.out, "train/policy.py", {"init_from": args.out}, same)


if __name__ == "__main__":
    command(main, "imitate")
