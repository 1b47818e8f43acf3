"""Many lanes of a dream as one Gymnasium vector environment: `gym.make_vec("VideoGPTDream-v0", num_envs=64)`.

All lanes share one forward pass. Lane i of an environment with seed s equals the single environment with seed s + i,
up to float32 rounding, which depends on the batch size. The autoreset mode decides what happens after an episode:

* `NEXT_STEP` (Gymnasium's default): the next step ignores the lane's action and starts a new episode.
* `SAME_STEP`: a new episode starts at once. The last frame and its info are in `final_obs` and `final_info`.
* `DISABLED`: no automatic reset. `reset(options={"reset_mask": mask})` restarts the lanes of the mask.

Dimensions: n lanes, t frames of a context, v game variables, h and w height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.generation.dream_state import DreamState
from worldmodel.models.loading import pretrained_run, resolve_folder
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.compatibility import config_difference
from worldmodel.utils.errors import UserError
from worldmodel.utils.memory import check_memory
from worldmodel.utils.settings import as_array, short_repr

from .dream_config import DreamConfig
from .reset_arguments import (
    check_context_numbers,
    check_mask,
    check_options,
    check_render_mode,
    check_seed,
    check_seeds,
    is_int_at_least,
)
from .snapshot import SNAPSHOT_KEYS, STATE, is_made_of, is_valid
from .spaces import to_gym_space

STEP_INFO = ("done_prob", "expected_reward", "log_likelihood", "entropy")
RESET_OPTIONS = ("context", "frames", "actions", "variables", "reset_mask")
"""Options that `reset` accepts."""
StepResult = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Frames (n, h, w, 3), rewards, terminations, truncations (n,), and infos by name."""


class DreamVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of dreams. Each lane has its own episode and random generator.

    Options of `reset`:

    * `{"context": i}`: start from starting context number i of the model, or give one number per lane.
    * `{"frames": (t, h, w, 3), "actions": (t - 1, ...), "variables": (t, v) or (v,)}`: start all lanes from your own
      frames. Frames are uint8 and t is a multiple of the time stride. Variables are optional.
    * None: each lane starts from a random starting context.

    Args:
        num_envs: Number of lanes.
        model: Run folder, or `hf://owner/name`; by default the pretrained model of `world=`.
        autoreset_mode: "NextStep", "SameStep" or "Disabled"; see the module docstring.
        render_mode: "rgb_array" or None.
        max_episode_steps: Gymnasium's name for `horizon`; used if `horizon` is not given.
        **settings: The fields of `DreamConfig`.

    Raises:
        UserError: An argument is invalid, the run folder is incomplete, or the lanes do not fit into memory.
    """

    def __init__(
        self,
        num_envs: int = 1,
        model: str | Path = "",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        if not is_int_at_least(num_envs, 1):
            raise UserError(f"num_envs must be a whole number of at least 1, not {short_repr(num_envs)}")
        modes = [mode.value for mode in AutoresetMode]
        mode = getattr(autoreset_mode, "value", autoreset_mode)
        if not isinstance(mode, str) or mode not in modes:
            raise UserError(f"autoreset_mode must be one of {', '.join(modes)}, not {short_repr(autoreset_mode)}")
        self.render_mode = check_render_mode(render_mode, ["rgb_array"])
        if settings.get("horizon") is None:
            settings["horizon"] = max_episode_steps
        config = DreamConfig.of(settings | {"model": model})
        self.folder = resolve_folder(config.model) if config.model else pretrained_run(config.world)
        self.dream = Dream.load(self.folder, config.sampling, config.device, config.precision)
        self.dream.sample_done = config.sample_done
        self.contexts = Context.load(self.folder)
        self.dream.check_context(self.contexts)
        if num_envs > 1:
            self.dream.check_memory(num_envs, self.contexts)
        self.env_spec, self.autoreset_mode = self.dream.env_spec, AutoresetMode(mode)
        limit = -(-self.env_spec.max_episode_steps // self.dream.stride)
        self.max_steps = limit if config.horizon is None else config.horizon
        fps = self.env_spec.fps / self.dream.stride
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_fps": fps, "render_modes": ["rgb_array"]}
        self.single_observation_space = spaces.Box(0, 255, self.env_spec.frame_shape, np.uint8)
        self.single_action_space = to_gym_space(self.env_spec.action)
        self.rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self.lanes: DreamState | None = None
        self.elapsed, self.done = np.zeros(num_envs, int), np.zeros(num_envs, bool)
        self._set_num_envs(num_envs)

    def _set_num_envs(self, n: int) -> None:
        self.num_envs = n
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        asked, each = check_options(options, RESET_OPTIONS), check_seeds(seed, self.num_envs)
        mask = check_mask(asked.pop("reset_mask", np.ones(self.num_envs, bool)), self.num_envs)
        if self.lanes is None and not mask.all():
            raise UserError("the first reset must include all lanes; leave reset_mask out")
        start = self._requested_start(asked)
        for i in np.flatnonzero(mask):  # all arguments are valid: only now does the state change
            if each[i] is not None:
                self.rngs[i] = seeding.np_random(each[i])[0]
        self._start_lanes(mask, start)
        return self.frames.copy(), self._gym_info(mask)

    def step(self, actions: np.ndarray) -> StepResult:
        over = self.done
        if self.autoreset_mode == AutoresetMode.DISABLED and over.any():
            lanes = np.flatnonzero(over).tolist()
            raise UserError(f"lanes {lanes} have ended; reset them with options={{'reset_mask': mask}}")
        rewards, terminated, truncated, step_info = self.step_lanes(actions)
        every, final = np.ones(self.num_envs, bool), {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            over = self.done
            if over.any():
                last = np.full(self.num_envs, None, object)
                for i in np.flatnonzero(over):
                    last[i] = self.frames[i].copy()
                final = {"final_obs": last, "_final_obs": over, "final_info": self._gym_info(over, step_info, over)}
                final["_final_info"] = over.copy()
        else:  # NEXT_STEP: discard the step of lanes that are about to be reset
            rewards[over], terminated[over], truncated[over] = 0, False, False
        if over.any():
            self._start_lanes(over, None)
        return self.frames.copy(), rewards, terminated, truncated, self._gym_info(every, step_info, ~over) | final

    def step_lanes(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Step every lane, finished or not, without autoreset.

        Args:
            actions: (n, ...) one action per lane.

        Returns:
            Rewards, terminations and truncations (n,), and the info of the step by name. The new frames are in
            `self.frames` (n, h, w, 3), the game variables in `self.variables` (n, v).

        Raises:
            UserError: Before the first reset, or an action is not in the action space.
        """
        step = self.dream.step(self.require_lanes("stepping"), actions)
        self.elapsed += 1
        self.frames, self.variables = step.frames[:, -1].cpu().numpy(), step.variables.cpu().numpy()
        terminated = step.terminated.cpu().numpy()
        truncated = ~terminated & (0 < self.max_steps <= self.elapsed)
        self.done = terminated | truncated
        step_info = {name: getattr(step, name).cpu().numpy() for name in STEP_INFO}
        expected = step.expected_variables.double().cpu().numpy().T
        step_info |= {
            f"expected_{name}": values for name, values in zip(self.env_spec.variables, expected, strict=True)
        }
        if self.dream.stride > 1:
            step_info["frames"] = step.frames.cpu().numpy()
        return step.reward.double().cpu().numpy(), terminated.copy(), truncated, step_info

    def require_lanes(self, what: str) -> DreamState:
        """The state of the lanes; `UserError` before the first reset. `what` completes the message."""
        if self.lanes is None:
            raise UserError(f"reset the dream before {what} it")
        return self.lanes

    @cached_property
    def model_digests(self) -> dict[str, str]:
        """Digests of the models, precision and device: a snapshot is restored only where they are equal."""
        parts = {part: weights_digest(self.folder / part) for part in ("vqvae", "prior", "outcome")}
        return parts | {"precision": str(self.dream.prior.start_token.dtype), "device": self.dream.device.type}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame (h, w, 3) per lane with `render_mode="rgb_array"`, otherwise None."""
        self.require_lanes("rendering")
        return tuple(self.frames.copy()) if self.render_mode == "rgb_array" else None

    def snapshot(self) -> dict[str, Any]:
        """The complete state of all lanes: caches, frames, and random states.

        It can be restored any number of times, also in another environment with the same models, precision and device
        type. It can be pickled.
        """
        lanes = self.require_lanes("taking a snapshot of").clone()
        names = {layer: name for name, layer in self.dream.memory_layers.items()}
        memory = {names[layer]: past for layer, past in lanes.memory.items()}
        state = copy.deepcopy({name: getattr(self, name) for name in STATE})
        return state | {"model_digests": self.model_digests, "lanes": replace(lanes, memory={}), "memory": memory}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Return to a snapshot. The same actions then give the same frames.

        Raises:
            UserError: It is not a snapshot, or it has other models, precision, device type or number of lanes.
        """
        none = UserError("this is not a snapshot; give what snapshot() returned")
        if (
            not isinstance(snapshot, dict)
            or not snapshot.keys() >= SNAPSHOT_KEYS
            or not is_made_of(snapshot["model_digests"])
        ):
            raise none
        if differs := config_difference(snapshot["model_digests"], self.model_digests):
            raise UserError(
                f"this snapshot was taken from another dream: it has {differs}; open the dream it was taken from"
            )
        if not isinstance(snapshot["rngs"], list):
            raise none
        if (n := len(snapshot["rngs"])) != self.num_envs:
            raise UserError(f"this snapshot has {n} lanes, not {self.num_envs}; open the dream with num_envs={n}")
        if not is_valid(snapshot, self.dream, n):
            raise none
        memory = {self.dream.memory_layers[name]: past for name, past in snapshot["memory"].items()}
        state = copy.deepcopy({name: snapshot[name] for name in STATE})
        vars(self).update(state | {"lanes": replace(snapshot["lanes"], memory=memory).clone()})

    def fork(self, n: int, seed: int | None = None) -> DreamVectorEnv:
        """Copy each lane n times into a new environment without autoreset. The models are shared.

        Args:
            n: Copies of each lane. Copies of lane i are lanes i * n to i * n + n - 1.
            seed: Reseeds every copy, so that copies differ under the same actions. None keeps the random state of
                the lane, so that all copies continue as the lane itself would.

        Raises:
            UserError: Before the first reset, a lane has ended, or the copies do not fit into memory.
        """
        if not is_int_at_least(n, 1):
            raise UserError(f"a lane needs at least 1 copy, not {short_repr(n)}")
        seed, lanes = check_seed(seed), self.require_lanes("forking")
        if self.done.any():
            raise UserError(f"lanes {np.flatnonzero(self.done).tolist()} have ended; reset them before forking")
        size = sum(tensor.nbytes for tensor in lanes.tensors()) + self.frames.nbytes
        check_memory(n * size, f"{n * self.num_envs:,} lanes", str(self.dream.device))
        index = np.repeat(np.arange(self.num_envs), n)
        other = copy.copy(self)
        other.lanes = lanes.select_lanes(torch.from_numpy(index))
        other.autoreset_mode = AutoresetMode.DISABLED
        other.metadata = self.metadata | {"autoreset_mode": other.autoreset_mode}
        other._set_num_envs(len(index))
        vars(other).update({name: getattr(self, name)[index] for name in STATE if name != "rngs"})
        other.rngs = [copy.deepcopy(self.rngs[i]) for i in index]
        if seed is not None:
            drawn = np.random.SeedSequence(seed).generate_state(len(index), np.uint64).tolist()
            other.lanes.reseed(drawn)
            other.rngs = [seeding.np_random(s)[0] for s in drawn]
        return other

    def _start_lanes(self, mask: np.ndarray, start: Context | np.ndarray | None) -> None:
        """Start new episodes in the lanes of the mask: from one context, numbered contexts, or random ones."""
        index = np.flatnonzero(mask)
        if isinstance(start, Context):
            context = start[torch.zeros(len(index), dtype=torch.long)]
        else:
            drawn = [self.rngs[i].integers(len(self.contexts)) for i in index] if start is None else start[index]
            context = self.contexts[torch.from_numpy(np.array(drawn, np.int64))]
        seeds = [int(self.rngs[i].integers(2**63)) for i in index]
        time = None if mask.all() or self.lanes is None else self.lanes.kv_cache.time
        lanes, frames, variables = self.dream.reset(context, seeds, time)
        if time is None:
            shape = (self.num_envs, *self.env_spec.frame_shape)
            self.lanes, self.frames = lanes, np.zeros(shape, np.uint8)
            self.variables = np.zeros((self.num_envs, len(self.env_spec.variables)), np.float32)
            self.elapsed, self.done = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        else:
            assert self.lanes is not None
            self.lanes.set_lanes(torch.from_numpy(index), lanes)
            self.frames, self.variables, self.done = self.frames.copy(), self.variables.copy(), self.done.copy()
        self.frames[index], self.variables[index] = frames.cpu().numpy(), variables.cpu().numpy()
        self.elapsed[index], self.done[index] = 0, False

    def _requested_start(self, options: dict[str, Any]) -> Context | np.ndarray | None:
        """The requested start: one context for all lanes, one number per lane, or None for random contexts."""
        if "context" in options:
            if len(options) > 1:
                raise UserError("reset takes either a context number or frames, not both; leave one out")
            return check_context_numbers(options["context"], self.num_envs, len(self.contexts))
        if not options:
            return None
        if not {"frames", "actions"} <= options.keys():
            raise UserError("a context needs both frames and the actions between them; add the missing option")
        frames, actions = (as_array(options[name])[None] for name in ("frames", "actions"))
        if actions.shape == (1, 0):  # an empty list, for a single frame, does not have the shape of an action
            actions = actions.reshape(1, 0, *self.env_spec.action.shape)
        variables = options.get("variables")
        if variables is not None:
            known = as_array(variables)[None]
            t = frames.shape[1] if frames.ndim > 1 else 0
            variables = np.repeat(known[:, None], t, 1) if known.ndim == 2 else known
        return self.dream.encode_context(frames, actions, variables)

    def _gym_info(
        self, mask: np.ndarray, step_info: dict[str, np.ndarray] | None = None, stepped: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Game variables of the lanes of the mask, and step infos of the stepped lanes, in Gymnasium's vector form."""
        variables = dict(zip(self.env_spec.variables, self.variables.T.astype(float), strict=True))
        info: dict[str, Any] = {}
        for values, lanes in ((variables, mask), (step_info, stepped)):
            if values is None or lanes is None or not lanes.any():
                continue
            for name, value in values.items():
                keep = lanes.reshape(-1, *[1] * (value.ndim - 1))
                info |= {name: np.where(keep, value, 0).astype(value.dtype), f"_{name}": lanes.copy()}
        return info
