"""Train a policy with Stable-Baselines3's PPO, in an engine or in a dream of it.

    python train/policy.py                                              # Health Gathering Supreme, in the engine
    python train/policy.py --env-id VideoGPTDream-v0                    # in the pretrained dream
    python train/policy.py --env-id VideoGPTDream-v0 --run runs/demo    # in your own dream

The engine's reward (Health Gathering: 1 per tic, -100 at death; Battle2: 1 per kill) is too sparse to learn from. So
training adds potential-based shaping (Ng, Harada and Russell, 1999): F(s, s') = gamma * phi(s') - phi(s), where phi is
a weighted sum of game variables. Shaping does not change the optimal policy. The reported reward is the engine's,
without shaping. Sample Factory also rewards gains of health and ammunition, but penalizes losses less. That is not a
potential, so a policy can farm it.

In a dream the model predicts the probability of termination, the expected reward and the expected game variables at
every step. Sampled terminations are rare, so they are a weak signal about a single step. With `--expected-reward` the
policy learns from the expectations instead. Episodes still end where a termination is sampled, so the return of an
episode has the same mean as with sampled rewards, and a lower variance.

An interrupted run resumes with its weights, its optimizer and its learning rate schedule (train/ppo.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import gymnasium as gym
import numpy as np

from configs import command
from configs.written import Written
from envs.policies import MAX_STACKED_FRAMES, load_policy, policy_folder, save_policy
from envs.sb3 import SB3VecEnv
from train.ppo import CheckpointCallback, check_ppo_args, last_step, learn, ppo_settings, resume
from worldmodel.models.loading import pretrained_run, resolve_folder
from worldmodel.training.logging import log_settings
from worldmodel.utils.checkpoint import checkpoints, load_weights, read_checkpoint, weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra
from worldmodel.utils.hardware import Precision
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.settings import Channels, Count, Fraction, NotNegative, Positive, Range, Seed, Settings

with extra("sb3"):
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import TensorBoardOutputFormat
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor


DREAM, ENGINE = "VideoGPTDream-v0", "VizdoomFrames-v0"


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Train a PPO policy on frames."""

    out: Path = Path("runs/policy")
    """Folder for the policy and its TensorBoard log; an unfinished run in it resumes."""
    init_from: Path | None = None
    """Folder of a policy to start from; by default the weights are random."""
    value_warmup_steps: Count = 0
    """Environment steps in which only the value function learns. Use it with init_from: an untrained value function
    would otherwise destroy the policy."""
    env_id: str = ENGINE
    """Gymnasium id of the environment."""
    scenario: str = "health_gathering_supreme"
    """ViZDoom scenario, or the name of a pretrained dream."""
    frame_skip: Positive = 4
    """Tics of the ViZDoom engine per step. In a dream, a step is as long as in its recordings."""
    run: str = ""
    """Run folder of your own world model, or hf://owner/name; by default the pretrained dream of `scenario`."""
    temperature: NotNegative = 1.0
    """Sampling temperature of the dream. Above 1 it is more random and harder to exploit (Ha and Schmidhuber, 2018)."""
    horizon: Count | None = None
    """Steps after which a dream is truncated and restarts from another real context. None uses the time limit of the
    recorded environment, 0 sets no limit. Long dreams drift and are easier to exploit (Janner et al., 2019)."""
    precision: Precision = "float32"
    """Precision of the dream's models; bfloat16 is faster on hardware that supports it."""
    total_timesteps: Positive = 1_500_000
    """Environment steps of the whole training; the learning rate falls to zero over them. A larger number continues a
    complete run."""
    stop_at_step: Count = 0
    """Stop after this environment step, to resume later; 0 trains to the end."""
    n_stack: Annotated[int, Range(1, MAX_STACKED_FRAMES)] = 1
    """Number of stacked frames that the policy observes, 1 to 4. A single frame does not show motion."""
    num_envs: Positive = 8
    """Engines stepped in one process, or lanes of the dream."""
    n_steps: Positive = 128
    """Steps of each environment between two PPO updates."""
    n_epochs: Positive = 3
    """Passes over each batch of experience."""
    learning_rate: NotNegative = 3e-4
    """Learning rate of Adam; it falls linearly to zero."""
    ent_coef: NotNegative = 0.01
    """Weight of the entropy bonus."""
    gamma: Fraction = 0.99
    """Discount factor."""
    expected_reward: bool = False
    """Learn from expected rewards and game variables instead of sampled ones. Only for dreams."""
    termination_penalty: NotNegative = 0.0
    """Extra cost of a termination; each step costs this value times its probability. Needs expected_reward."""
    reward_scale: float = 0.01
    """Factor of the environment's reward in training."""
    reward_shaping: tuple[tuple[str, float], ...] = (("HEALTH", 0.02),)
    """Game variables and their weights in the shaping potential; an empty list turns shaping off."""
    features_dim: Channels = 512
    """Width of the last layer of the network; 512 as in Mnih et al. (2015)."""
    save_every: Positive = 25_000
    """Environment steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Number of latest checkpoints to keep, so that a run survives a damaged one."""
    export: Path | None = None
    """Folder for a copy of the final policy in half precision, without optimizer state."""
    seed: Seed = 0
    """Seed of the environments, the initial weights and the actions."""
    device: str = DEVICE
    """Device of the policy and the dream: cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ppo_args(self)
        if self.termination_penalty and not self.expected_reward:
            raise UserError("--termination-penalty needs the probability of an end; give --expected-reward too")
        if self.run and self.env_id != DREAM:
            raise UserError(f"--run names a dream, but {self.env_id} is not one; add --env-id VideoGPTDream-v0")
        if self.frame_skip != 4 and self.env_id != ENGINE:
            raise UserError(f"--frame-skip is only for {ENGINE}, not for {self.env_id}; leave it out")


def dream_folder(args: Args) -> Path | None:
    """The run folder of the dream to train in; None for an engine."""
    if args.env_id != DREAM:
        return None
    return resolve_folder(args.run) if args.run else pretrained_run(args.scenario)


class ShapedReward(VecEnvWrapper):
    """reward -> scale * reward + gamma * phi(s') - phi(s), with phi = 0 after termination."""

    def __init__(self, env: VecEnv, args: Args) -> None:
        super().__init__(env)
        self.args = args

    def _potential(self, infos: Sequence[dict[str, Any]], kind: str = "") -> np.ndarray:
        if missing := [name for name, _ in self.args.reward_shaping if name not in infos[0]]:
            raise UserError(
                f"this environment has no game variable {missing[0]} to shape the reward with; give "
                "--reward-shaping variables that it has, or nothing for no shaping"
            )
        return np.array(
            [sum(weight * info[kind + name] for name, weight in self.args.reward_shaping) for info in infos]
        )

    def _potential_after(self, done: np.ndarray, infos: Sequence[dict[str, Any]]) -> np.ndarray:
        """Potentials of the states that the next step starts from: after autoreset for finished episodes."""
        return self._potential([self.unwrapped.reset_infos[i] if d else infos[i] for i, d in enumerate(done)])

    def reset(self) -> Any:
        frames = self.venv.reset()
        self.potential = self._potential(self.unwrapped.reset_infos)
        return frames

    def step_wait(self) -> Any:
        frames, rewards, done, infos = self.venv.step_wait()
        after = self._potential(infos)
        after[[d and not info["TimeLimit.truncated"] for d, info in zip(done, infos, strict=True)]] = 0.0
        shaped = self.args.reward_scale * rewards + self.args.gamma * after - self.potential
        self.potential = self._potential_after(done, infos)
        return frames, shaped, done, infos


class ExpectedReward(ShapedReward):
    """The mean of `ShapedReward` over the outcomes of a step, minus termination_penalty * probability of an end."""

    def step_wait(self) -> Any:
        frames, _, done, infos = self.venv.step_wait()
        rewards, end = np.array([(info["expected_reward"], info["done_prob"]) for info in infos]).T
        after = (1 - end) * self._potential(infos, "expected_")
        shaped = self.args.reward_scale * rewards + self.args.gamma * after - self.potential
        self.potential = self._potential_after(done, infos)
        return frames, shaped - self.args.termination_penalty * end, done, infos


class TrainingCallback(CheckpointCallback):
    """Logs the settings to TensorBoard, and trains only the value function during its warmup."""

    def __init__(self, args: Args, ppo: PPO, settings: dict[str, Any]) -> None:
        def save(steps: int) -> None:
            save_policy(args.out, ppo.policy, settings, {"steps": steps}, keep=args.keep_checkpoints)  # type: ignore[arg-type]

        super().__init__(save, args.save_every, ppo.num_timesteps)
        self.args, self.settings = args, settings

    def _on_training_start(self) -> None:
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and not self.saved_steps:
                log_settings(output.writer, self.settings)

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        for name, parameter in self.model.policy.named_parameters():
            parameter.requires_grad = name.startswith("value_net") or self.num_timesteps >= self.args.value_warmup_steps


def settings(args: Args) -> dict[str, Any]:
    """The settings that must be equal to resume a run; paths, stops and devices may differ."""
    elsewhere = ("out", "stop_at_step", "save_every", "keep_checkpoints", "export", "device")
    values = {k: v for k, v in asdict(args).items() if k not in elsewhere}
    if args.run and (folder := dream_folder(args)):  # a dream is known by its weights, since its folder may move
        values["run"] = "+".join(weights_digest(folder / part) for part in ("prior", "outcome"))
    if args.init_from is not None:
        values["init_from"] = weights_digest(policy_folder(str(args.init_from)))
    return values


def make_envs(args: Args) -> VecEnv:
    """The environments: engines stepped one after the other, or a dream with one forward pass for all lanes."""
    try:
        gym.spec(args.env_id)  # an error for an unknown id, or one with a module before it
        if args.env_id != DREAM:
            if args.expected_reward:
                raise UserError(f"{args.env_id} is not a dream, so it predicts no reward; leave --expected-reward out")
            engine: dict[str, Any] = {"scenario": args.scenario, "frame_skip": args.frame_skip}
            own = engine if args.env_id == ENGINE else {}
            envs: VecEnv = DummyVecEnv([lambda: gym.make(args.env_id, **own)] * args.num_envs)
        else:
            dream: dict[str, Any] = {"model": args.run, "world": args.scenario}
            dream |= {"temperature": args.temperature, "precision": args.precision, "device": args.device}
            dream |= {"horizon": args.horizon}
            envs = SB3VecEnv(gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode="SameStep", **dream))
    except gym.error.Error as error:
        raise UserError(str(error)) from None
    learned = ExpectedReward if args.expected_reward else ShapedReward
    return VecFrameStack(learned(VecMonitor(envs), args), args.n_stack)


def make_ppo(args: Args, environments: VecEnv, last: int) -> PPO:
    return PPO(
        "CnnPolicy",
        environments,
        **ppo_settings(args, last),
        ent_coef=args.ent_coef,
        device=args.device,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": args.features_dim}},
    )


def engine_flags(args: Args) -> dict[str, Any]:
    """Scenario and frame skip to evaluate the policy with; empty if its world has another engine."""
    if args.env_id == ENGINE:
        return {"scenario": args.scenario, "frame_skip": args.frame_skip}
    if (folder := dream_folder(args)) is None:
        return {}
    env_spec = read_checkpoint(folder / "vqvae").config["env_spec"]
    if env_spec["env_id"] != ENGINE:
        return {}
    return {"scenario": env_spec["name"], "frame_skip": env_spec["env_kwargs"].get("frame_skip", 4)}


def main(args: Args) -> Written:
    last, made_with = last_step(args), settings(args)
    environments = make_envs(args)
    try:
        with folder_lock(args.out):
            ppo = make_ppo(args, environments, last)
            if checkpoints(args.out):
                resume(ppo, args.out, read_checkpoint(args.out).config | {"training": made_with}, args.seed)
            elif args.init_from is not None:
                load_weights(policy_folder(str(args.init_from)), ppo.policy)
            learn(ppo, TrainingCallback(args, ppo, made_with), last)
    finally:
        environments.close()
    if args.export is not None:
        small = load_policy(args.out).half()
        with folder_lock(args.export):
            save_policy(args.export, small, made_with, {"steps": ppo.num_timesteps}, resumable=False)
    print(f"finished after {ppo.num_timesteps:,} steps")
    policy, flags = args.export or args.out, engine_flags(args)
    return Written(policy, "rollout/evaluate_policy.py" if flags else "", {"policy": policy} | flags)


if __name__ == "__main__":
    command(main, "policy")
