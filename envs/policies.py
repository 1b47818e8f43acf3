"""Stable-Baselines3 policies as safetensors + JSON, so that loading a policy never unpickles anything.

SB3's own zip contains a cloudpickle of the policy's class, spaces and schedules. Here the JSON contains what is needed
to build the policy, and the safetensors file its weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces

from worldmodel.data.env_spec import ActionSpec, EnvSpec, random_actions
from worldmodel.models.loading import PRETRAINED, refuse_other_versions, resolve_folder
from worldmodel.utils.checkpoint import read_checkpoint, save_checkpoint, weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra

from .spaces import to_action_spec, to_gym_space

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticCnnPolicy

Player = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Picks actions (n, ...) from the last frames (t, n, h, w, 3) of n episodes and a generator.

Frames are oldest first; t is 1 at the start of an episode and at most `MAX_STACKED_FRAMES`.
"""
MAX_STACKED_FRAMES = 4
"""Largest number of stacked frames that a policy may observe."""


def policy_folder(name: str) -> Path:
    """The folder of a policy: of the pretrained one of that name (`health_gathering_supreme`), else the path itself."""
    return resolve_folder(name, "_policy")


def shipped_policies(world: str) -> tuple[str, ...]:
    """Names of the pretrained policies of a world: `<world>` (trained in the engine) and `<world>_dream`."""
    return tuple(name for name in (world, f"{world}_dream") if (PRETRAINED / f"{name}_policy").exists())


def save_policy(
    folder: Path,
    policy: ActorCriticCnnPolicy,
    training: dict[str, Any],
    progress: dict[str, Any],
    resumable: bool = True,
    keep: int = 1,
) -> None:
    """Write a checkpoint of a policy on channel-first images.

    Args:
        folder: Folder of the policy.
        policy: The policy.
        training: Settings it was trained with.
        progress: Step counts of the run.
        resumable: Also save the optimizer.
        keep: Number of checkpoints that stay in the folder, this one included.
    """
    spec = to_action_spec(policy.action_space)
    config = {
        "kind": "ppo_cnn",
        "observation": list(policy.observation_space.shape or ()),
        "action": {"kind": spec.kind, "nvec": spec.nvec, "low": spec.low, "high": spec.high},
        "features_dim": policy.features_dim,
        "training": training,
    }
    save_checkpoint(folder, policy, config, progress, policy.optimizer if resumable else None, keep)


def load_policy(folder: str | Path, env_spec: EnvSpec | None = None) -> ActorCriticCnnPolicy:
    """Load a policy, ready to `predict` on frames (h, w, 3k) or batches of them, with k frames in the channels.

    Args:
        folder: Folder of the policy, or the name of a pretrained one.
        env_spec: Environment whose frame size and actions the policy must match; None skips the check.

    Raises:
        UserError: The folder has no policy, its frames or actions differ from those of `env_spec`, or
            Stable-Baselines3 is not installed.
    """
    with extra("sb3"):
        from stable_baselines3.common.policies import ActorCriticCnnPolicy

    folder = policy_folder(str(folder))
    found = read_checkpoint(folder)
    config = found.config
    if config.get("kind") != "ppo_cnn":
        raise UserError(
            f"{folder} contains a model of kind {config.get('kind')}, not a policy; give a folder written by "
            "train/policy.py"
        )
    with refuse_other_versions(folder, "train/policy.py"):
        spec = ActionSpec.from_json(config.get("action"), f"{folder}: action")
        channels, height, width = config["observation"]
    if env_spec is not None and (env_spec.action != spec or env_spec.frame_shape != (height, width, 3)):
        raise UserError(
            f"{folder} was trained on {height}x{width} frames with actions {spec}, but {env_spec.name} has "
            f"{env_spec.frame_shape[0]}x{env_spec.frame_shape[1]} frames with actions {env_spec.action}; "
            "use another policy"
        )
    with refuse_other_versions(folder, "train/policy.py"):
        image = spaces.Box(0, 255, (channels, height, width), np.uint8)
        shape = {"features_dim": config["features_dim"]}
        policy = ActorCriticCnnPolicy(image, to_gym_space(spec), lambda _: 0.0, features_extractor_kwargs=shape)
    found.fill(policy)
    policy.set_training_mode(False)
    return policy


@torch.inference_mode()
def sample_actions(
    policy: ActorCriticCnnPolicy, frames: np.ndarray, epsilon: float, rng: np.random.Generator
) -> np.ndarray:
    """Sample actions (n, ...) for frames (n, h, w, 3k).

    With probability `epsilon` an action is uniformly random instead. All randomness comes from `rng`, so the result
    does not depend on torch's global generator.
    """
    spec = to_action_spec(policy.action_space)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # policy.get_distribution takes a third longer
    features = policy.extract_features(pixels, policy.pi_features_extractor)
    output = policy.action_net(policy.mlp_extractor.forward_actor(features))  # type: ignore[arg-type]
    if spec.kind == "Box":
        spread = policy.log_std.exp().numpy() * rng.normal(size=output.shape)
        actions = np.clip(output.numpy() + spread, spec.low, spec.high).astype(spec.dtype)
        return with_random_actions(actions, spec, epsilon, rng)
    noise = torch.from_numpy(rng.gumbel(size=output.shape)).float()
    factors = (output + noise).split(spec.nvec, dim=-1)  # Gumbel-max: argmax(logits + noise) samples each factor
    actions = torch.stack([factor.argmax(-1) for factor in factors], dim=-1).numpy().reshape(-1, *spec.shape)
    return with_random_actions(actions, spec, epsilon, rng)


def with_random_actions(actions: np.ndarray, spec: ActionSpec, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """The actions (n, ...), each replaced by a uniformly random one with probability `epsilon`."""
    random, chance = random_actions(spec, len(actions), rng), rng.random(len(actions))
    return np.where((chance < epsilon).reshape(-1, *[1] * len(spec.shape)), random, actions)


def scripted_player(name: str, env_spec: EnvSpec) -> Player:
    """A player that repeats a fixed script: "cycle:1x20,2x20" is action 1 for 20 steps, then 2 for 20, then again.

    The script restarts with each episode. A new episode is recognized by having a single frame.

    Raises:
        UserError: The name is not a script, or it has actions that the environment does not have.
    """
    try:
        parts = [part.split("x") for part in name.removeprefix("cycle:").split(",")]
        script = [int(action) for action, steps in parts for _ in range(int(steps))]
    except ValueError:
        script = []
    spec, step = env_spec.action, 0
    if not script or spec.kind != "Discrete" or not 0 <= min(script) <= max(script) < spec.nvec[0]:
        raise UserError(
            f"{name} is not a script of actions of {env_spec.name}, which has {spec}; write action x steps, such as "
            "cycle:0x20,1x20"
        )

    def blindly(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nonlocal step
        step = 0 if len(frames) == 1 else step + 1
        return np.full(frames.shape[1], script[step % len(script)])

    return blindly


def is_blind(name: str) -> bool:
    """Whether the player of that name ignores the frames."""
    return name == "random" or name.startswith("cycle:")


def load_player(name: str, env_spec: EnvSpec, deterministic: bool = False) -> Player:
    """Load a player by name.

    Args:
        name: "random", "cycle:..." (see `scripted_player`), the folder of a policy, or the name of a pretrained one. A
            policy may end in @epsilon, such as "take_cover@0.3": that fraction of its actions is random. This gives
            players of any strength between the policy and a random one.
        env_spec: Environment that is played.
        deterministic: Take the most likely action instead of sampling.

    Raises:
        UserError: The name is unknown, the fraction is not in 0 to 1, or the policy does not fit `env_spec`.
    """
    if name == "random":
        return lambda frames, rng: random_actions(env_spec.action, frames.shape[1], rng)
    if name.startswith("cycle:"):
        return scripted_player(name, env_spec)
    folder, epsilon = split_epsilon(name)
    policy = load_policy(folder, env_spec)
    n_stack = policy.observation_space.shape[0] // 3  # type: ignore[index]

    def play(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        stacked = stack_frames(frames, n_stack)
        if not deterministic:
            return sample_actions(policy, stacked, epsilon, rng)
        actions, _ = policy.predict(stacked, deterministic=True)
        return with_random_actions(actions, env_spec.action, epsilon, rng)

    return play


def split_epsilon(name: str) -> tuple[str, float]:
    """A policy's name without its @epsilon, and epsilon; `UserError` unless that is a number from 0 to 1."""
    folder, at, fraction = name.rpartition("@")
    if not at:
        return name, 0.0
    with contextlib.suppress(ValueError):
        if 0 <= (epsilon := float(fraction)) <= 1:
            return folder, epsilon
    raise UserError(f"{name}: the fraction of random actions after @ must be a number from 0 to 1")


def policy_digest(name: str, env_spec: EnvSpec) -> str:
    """An identifier of a player: its name, or the digest of its weights.

    It loads the player, so that an error is reported before any process starts.
    """
    load_player(name, env_spec)
    if is_blind(name):
        return name
    folder, _ = split_epsilon(name)
    return weights_digest(policy_folder(folder)) + name.removeprefix(folder)


def stack_frames(frames: np.ndarray, n_stack: int) -> np.ndarray:
    """Stack the last frames of (t, n, h, w, 3) in the channels: (n, h, w, 3 n_stack), oldest first.

    Missing frames at the start of an episode are black, as in SB3's `VecFrameStack`.
    """
    frames = frames[-n_stack:]
    padded = np.pad(frames, [(n_stack - len(frames), 0)] + [(0, 0)] * 4)
    return np.concatenate(list(padded), axis=-1)
