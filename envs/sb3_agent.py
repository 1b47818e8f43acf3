"""Plays one environment with a policy that Stable-Baselines3 saved: stacks observations, keeps states, samples actions.

The policy is rebuilt for the environment's own spaces, as Stable-Baselines3 would do: images get their channels first,
and are stacked if the policy was trained on `VecFrameStack`. The file does not contain the statistics of
`VecNormalize`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra

from .sb3_zip import brief, group, read_zip, rebuildable_policy, unpickle_policy

with extra("sb3"):
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
    from stable_baselines3.common.vec_env import VecTransposeImage
    from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

MAX_STACK = 64
"""Largest number of stacked observations."""
SHARED = re.compile(r"^(pi|vf)_(?=features_extractor\.)")
"""Prefixes of the further names of a shared extractor. Before 1.7, Stable-Baselines3 saved it under one name only."""


class SB3Agent:
    """Plays one environment; `reset` starts an episode.

    Args:
        policy: The policy.
        stack: Stacks the observations, if the policy observes several.
        deterministic: Take the most likely action instead of sampling.
        use_sde: The policy explores with noise that depends on the state (gSDE), which is drawn for each episode.
    """

    def __init__(self, policy: BasePolicy, stack: StackedObservations | None, deterministic: bool, use_sde: bool):
        self.policy, self.stack, self.deterministic, self.use_sde = policy, stack, deterministic, use_sde
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far."""
        self.starts, self.state = True, None

    def __call__(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        """An action; all randomness comes from `rng`."""
        if self.stack:
            observation = self._stacked(self.stack, observation)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            if self.starts and self.use_sde:
                self.policy.reset_noise()  # type: ignore[operator]
            starts = np.array([self.starts])
            action, self.state = self.policy.predict(observation, self.state, starts, self.deterministic)  # type: ignore[assignment]
        self.starts = False
        return action

    def _stacked(self, stack: StackedObservations, observation: Any) -> Any:
        if self.starts:
            return stack.reset(observation[None])[0]
        return stack.update(observation[None], np.array([False]), [{}])[0][0]


def load_sb3_agent(
    path: Path, observed: spaces.Space, actions: spaces.Space, deterministic: bool = False, trust: bool = False
) -> SB3Agent:
    """Load a policy that Stable-Baselines3 has saved.

    Args:
        path: The zip.
        observed: Observation space of the environment.
        actions: Its action space.
        deterministic: Take the most likely action instead of sampling.
        trust: Unpickle the policy's class and arguments, which can run any code.

    Raises:
        UserError: The file cannot be read, needs to be unpickled, or does not fit the environment.
    """
    data, weights = read_zip(path)
    use_sde = data.get("use_sde") is True
    try:
        check_actions(group(data, "action_space"), actions)
        space, stack = policy_space(group(data, "observation_space"), observed)
        kind, arguments = unpickle_policy(path, data) if trust else rebuildable_policy(data, weights)
        policy = build_policy(kind, space, actions, arguments | ({"use_sde": True} if use_sde else {}))
        fill_policy(policy, weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return SB3Agent(policy, stack, deterministic, use_sde)


def check_actions(text: dict[str, Any], space: spaces.Space) -> None:
    """Compare the action space with the file's: weights do not tell `MultiDiscrete([2, 3])` from `Discrete(5)`."""
    kind, sizes = kind_of(text), [name for name in ("n", "nvec") if hasattr(space, name)]
    if kind != type(space).__name__ or any(str(text.get(name)) != str(getattr(space, name)) for name in sizes):
        trained = f"{kind}({brief(text.get('n', text.get('nvec', '...')))})"
        raise UserError(f"it was trained with actions {trained}, not {space}; give another policy")


def kind_of(text: dict[str, Any]) -> str:
    """The class name of a space, from its text in the file."""
    found = re.fullmatch(r"<class '[\w.]*\.(\w+)'>", str(text.get(":type:")))
    return found[1] if found else "without a class"


def policy_space(text: dict[str, Any], space: spaces.Space) -> tuple[spaces.Space, StackedObservations | None]:
    """The space that the saved policy observes in an environment with `space`, and a frame stacker if it has one."""
    shape, stack, kind = saved_shape(text), None, kind_of(text)
    if shape and isinstance(space, spaces.Box):
        n, rest = divmod(math.prod(shape), math.prod(space.shape))
        stack = StackedObservations(1, n, space) if not rest and 1 < n <= MAX_STACK else None
    seen = channels_first(stack.stacked_observation_space if stack else space)
    if kind != type(space).__name__ or (isinstance(space, spaces.Box) and seen.shape != shape):
        trained = brief(f"{kind}{shape or ''}")
        raise UserError(f"it was trained on observations {trained}, not {space}; wrap the environment as in training")
    return seen, stack


def saved_shape(text: dict[str, Any]) -> tuple[int, ...] | None:
    """The shape of a space, from its text in the file; None if the text has none."""
    shape = text.get("_shape", text.get("shape"))
    if isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape):
        return tuple(shape)
    return None


def channels_first(space: spaces.Space) -> spaces.Space:
    """The space with channel-first images, as Stable-Baselines3 passes them to a policy."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: channels_first(part) for name, part in space.items()})
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space


def build_policy(
    kind: type[BasePolicy], space: spaces.Space, actions: spaces.Space, arguments: dict[str, Any]
) -> BasePolicy:
    """A policy with random weights."""
    try:
        return kind(space, actions, lr_schedule=lambda _: 0.0, **arguments)
    except Exception as error:  # a hostile file may cause any error
        raise UserError(f"it cannot be rebuilt as {kind.__name__} ({brief(error)}); give module:Class") from None


def fill_policy(policy: BasePolicy, weights: dict[str, Tensor]) -> None:
    """Load the weights; every one must be there and fit."""
    first_names = {name: SHARED.sub("", name) for name in policy.state_dict()}
    shared = {name: weights[first] for name, first in first_names.items() if first in weights}
    try:
        policy.load_state_dict(shared | weights)
    except RuntimeError as error:
        raise UserError(f"its weights do not fit ({brief(error)}); give module:Class") from None
