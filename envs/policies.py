"""Stable-Baselines3 policies as safetensors + JSON, so that loading one never unpickles anything.

SB3's own zip holds a cloudpickle of the policy's class, spaces and schedules. Here the JSON holds the few
facts from which the policy is built again, and the tensors are plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy

from worldmodel.data.env_spec import ActionSpec, EnvSpec, random_actions
from worldmodel.models.loading import PRETRAINED, refuse_other_versions, resolve_folder
from worldmodel.utils.checkpoint import read_checkpoint, save_checkpoint, weights_digest
from worldmodel.utils.errors import UserError

from .spaces import to_action_spec, to_gym_space

Player = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Actions (n, ...) for the last frames (t, n, h, w, 3) of n episodes, oldest first, t at most `MAX_STACKED_FRAMES`."""
MAX_STACKED_FRAMES = 4
"""Frames that a policy may see at once."""


def policy_folder(name: str) -> Path:
    """A folder as it is, or the policy that ships under that name (`health_gathering_supreme`)."""
    return resolve_folder(name, "_policy")


def shipped_policies(world: str) -> tuple[str, ...]:
    """Names of the policies that ship for a world: `<world>`, trained in the engine, and `<world>_dream`."""
    return tuple(name for name in (world, f"{world}_dream") if (PRETRAINED / f"{name}_policy").exists())


def save_policy(
    folder: Path,
    policy: ActorCriticCnnPolicy,
    training: dict[str, Any],
    progress: dict[str, Any],
    resumable: bool = True,
    keep: int = 1,
) -> None:
    """Write a policy on channel-first images, the settings it was trained with, and, to resume, its optimizer.

    `keep` checkpoints of the run stay, this one among them.
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
    """A policy ready to `predict` on frames (h, w, 3k) or batches of them, k frames side by side in the channels.

    `env_spec`, if given, must have the frames and actions the policy was trained on; `UserError` if not.
    """
    folder = policy_folder(str(folder))
    found = read_checkpoint(folder)
    config = found.config
    if config.get("kind") != "ppo_cnn":
        raise UserError(
            f"{folder} holds a {config.get('kind')}, not a policy; give a folder written by train/policy.py"
        )
    with refuse_other_versions(folder, "train/policy.py"):
        spec = ActionSpec.from_json(config.get("action"), f"{folder}: action")
        channels, height, width = config["observation"]
    if env_spec is not None and (env_spec.action != spec or env_spec.frame_shape != (height, width, 3)):
        raise UserError(
            f"{folder} acts on {height}x{width} frames with {spec}, "
            f"but {env_spec.name} has {env_spec.frame_shape[0]}x{env_spec.frame_shape[1]} with {env_spec.action}; "
            "choose another policy"
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
    """Sampled actions for frames (n, h, w, 3k); with chance `epsilon` each is uniformly random instead."""
    spec = to_action_spec(policy.action_space)
    noise = torch.from_numpy(rng.gumbel(size=(len(frames), spec.encoded_dim))).float()
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # SB3's own way to the logits takes a third longer
    features = policy.extract_features(pixels, policy.pi_features_extractor)
    logits = policy.action_net(policy.mlp_extractor.forward_actor(features))  # type: ignore[arg-type]
    factors = (logits + noise).split(spec.nvec, dim=-1)  # Gumbel-max: a sample of each factor from our own generator
    actions = torch.stack([factor.argmax(-1) for factor in factors], dim=-1).numpy().reshape(-1, *spec.shape)
    return with_random_actions(actions, spec, epsilon, rng)


def with_random_actions(actions: np.ndarray, spec: ActionSpec, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """The actions (n, ...), each replaced with chance `epsilon` by a uniformly random one."""
    random, chance = random_actions(spec, len(actions), rng), rng.random(len(actions))
    return np.where((chance < epsilon).reshape(-1, *[1] * len(spec.shape)), random, actions)


def scripted_player(name: str, env_spec: EnvSpec) -> Player:
    """The player that a name such as "cycle:1x20,2x20" asks for: action 1 for 20 steps, 2 for 20, and so on, blindly.

    It begins anew with each episode, of which it sees a single frame.
    """
    try:
        parts = [part.split("x") for part in name.removeprefix("cycle:").split(",")]
        script = [int(action) for action, steps in parts for _ in range(int(steps))]
    except ValueError:
        script = []
    spec, step = env_spec.action, 0
    if not script or spec.kind != "Discrete" or not 0 <= min(script) <= max(script) < spec.nvec[0]:
        raise UserError(f"{name}: give actions of {env_spec.name} and steps, such as cycle:0x20,1x20; it has {spec}")

    def blindly(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nonlocal step
        step = 0 if len(frames) == 1 else step + 1
        return np.full(frames.shape[1], script[step % len(script)])

    return blindly


def is_blind(name: str) -> bool:
    """Whether the player of that name looks at nothing."""
    return name == "random" or name.startswith("cycle:")


def load_player(name: str, env_spec: EnvSpec, deterministic: bool = False) -> Player:
    """What acts on frames: "random", "cycle:..." (see `scripted_player`), or a policy's folder or shipped name, which
    may end in @share.

    A share of random actions makes policies of any strength between a policy and a random one.
    """
    if name == "random":
        return lambda frames, rng: random_actions(env_spec.action, frames.shape[1], rng)
    if name.startswith("cycle:"):
        return scripted_player(name, env_spec)
    folder, _, fraction = name.rpartition("@") if "@" in name else (name, "", "0")
    try:
        epsilon = float(fraction)
    except ValueError:
        epsilon = -1.0
    if not 0 <= epsilon <= 1:
        raise UserError(f"{name}: the share of random actions after @ must lie between 0 and 1")
    policy = load_policy(folder, env_spec)
    n_stack = policy.observation_space.shape[0] // 3  # type: ignore[index]

    def likeliest(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        actions, _ = policy.predict(stack_frames(frames, n_stack), deterministic=True)
        return with_random_actions(actions, env_spec.action, epsilon, rng)

    return (
        likeliest
        if deterministic
        else lambda frames, rng: sample_actions(policy, stack_frames(frames, n_stack), epsilon, rng)
    )


def policy_digest(name: str, env_spec: EnvSpec) -> str:
    """What tells a policy from others; says what is wrong with it before any process starts."""
    load_player(name, env_spec)
    if is_blind(name):
        return name
    folder = name.rpartition("@")[0] or name
    return weights_digest(policy_folder(folder)) + name.removeprefix(folder)


def stack_frames(frames: np.ndarray, n_stack: int) -> np.ndarray:
    """(n, h, w, 3 depth) the last of frames (t, n, h, w, 3), oldest first, black before: as SB3's `VecFrameStack`."""
    frames = frames[-n_stack:]
    padded = np.pad(frames, [(n_stack - len(frames), 0)] + [(0, 0)] * 4)
    return np.concatenate(list(padded), axis=-1)
