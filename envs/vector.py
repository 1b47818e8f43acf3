"""Many lanes of a dream as one Gymnasium vector environment: `gym.make_vec("VideoGPTDream-v0", num_envs=64)`.

All lanes take one forward pass together. Lane i, seeded with s, is the single environment seeded with s + i, up to the
rounding of float32 products of other sizes. A lane that ends starts again by the autoreset mode:

* `NEXT_STEP` (Gymnasium's default): the step after the end ignores the lane's action and begins a new episode.
* `SAME_STEP`: the new episode begins at once; the last frame and its info are in `final_obs` and `final_info`.
* `DISABLED`: nothing happens by itself; `reset(options={"reset_mask": mask})` starts the lanes of the mask again.

Dimensions: n lanes, t frames of a context.
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

from worldmodel.checkpoint import difference, digest
from worldmodel.dream import Context, Dream
from worldmodel.errors import UserError
from worldmodel.lanes import Lanes
from worldmodel.models import folder_of, shipped
from worldmodel.rates import Precision, check_device
from worldmodel.sampling import Sampling

from .spaces import to_space

STATE = ("frames", "variables", "elapsed", "ended", "rngs")
"""What an environment knows beside its lanes."""
Outcome = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Frames (n, h, w, 3), rewards, terminations, truncations (n,), and infos by name."""


class DreamVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` lanes of the dream of a run folder `model`, or of the model that ships for `world`.

    `horizon` (or `max_episode_steps`): steps until `truncated`, the recorded limit if None, 0 for none. `ends=False`:
    nothing is `terminated`, and `info["end"]` says how likely it was. `temperature`, `top_k`, `top_p`: how codes are
    drawn. `precision="bfloat16"` is faster for many lanes on hardware that has it, and "auto" takes it there only.

    `reset(options=...)` takes `{"context": i}`, or one number a lane: starting contexts beside the model;
    or `{"frames": (t, h, w, 3), "actions": (t - 1, ...), "variables": (t, v) or (v,)}` of your own for all lanes, uint8
    and a multiple of the time stride. Without options each lane draws a starting context.
    """

    def __init__(
        self,
        num_envs: int = 1,
        model: str | Path = "",
        world: str = "health_gathering_supreme",
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        ends: bool = True,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        precision: Precision = "float32",
        device: str = "cpu",
    ) -> None:
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise UserError(f"num_envs must be a whole number of at least 1, not {num_envs}")
        horizon = max_episode_steps if horizon is None else horizon
        if horizon is not None and (not isinstance(horizon, int | np.integer) or horizon < 0):
            raise UserError(f"horizon is a number of steps, or 0 for dreams without end, not {horizon}")
        modes = [mode.value for mode in AutoresetMode]
        if getattr(autoreset_mode, "value", autoreset_mode) not in modes:
            raise UserError(f"autoreset_mode is {', '.join(modes)}, not {autoreset_mode!r}")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"many dreams are rendered as rgb_array, not {render_mode!r}; human is for a single one")
        check_device(device)
        folder = folder_of(str(model)) if str(model) else shipped(world)
        self.folder = folder
        self.dream = Dream.load(folder, Sampling(temperature=temperature, top_k=top_k, top_p=top_p), device, precision)
        self.dream.ends = ends
        self.contexts = Context.load(folder)
        self.world, self.mode = self.dream.world, AutoresetMode(autoreset_mode)
        self.limit = -(-self.world.max_episode_steps // self.dream.stride) if horizon is None else horizon
        fps = self.world.fps / self.dream.stride
        self.metadata = {"autoreset_mode": self.mode, "render_fps": fps, "render_modes": ["rgb_array"]}
        self.render_mode = render_mode
        self.single_observation_space = spaces.Box(0, 255, self.world.frame_shape, np.uint8)
        self.single_action_space = to_space(self.world.action)
        self.rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self.lanes: Lanes | None = None
        self.elapsed, self.ended = np.zeros(num_envs, int), np.zeros(num_envs, bool)
        self._size(num_envs)

    def _size(self, n: int) -> None:
        self.num_envs = n
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise UserError(f"reset_mask must be {self.num_envs} booleans, at least one of them true")
        if self.lanes is None and not mask.all():
            raise UserError("the first reset must be of all lanes; leave reset_mask out")
        if seed is not None:
            seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed + i for i in range(self.num_envs)]
            if len(seeds) != self.num_envs:
                raise UserError(f"{self.num_envs} lanes need as many seeds, not {len(seeds)}")
            for i in np.flatnonzero(mask):
                if (given := seeds[i]) is not None:
                    self.rngs[i] = seeding.np_random(int(given))[0]
        self._begin(mask, options)
        return self.frames.copy(), self._info(mask)

    def step(self, actions: np.ndarray) -> Outcome:
        over = self.ended
        if self.mode == AutoresetMode.DISABLED and over.any():
            lanes = np.flatnonzero(over).tolist()
            raise UserError(f"lanes {lanes} have ended; reset them with options={{'reset_mask': mask}}")
        rewards, terminated, truncated, told = self.advance(actions)
        every, final = np.ones(self.num_envs, bool), {}
        if self.mode == AutoresetMode.SAME_STEP:
            over = self.ended
            if over.any():
                last = np.full(self.num_envs, None, object)
                for i in np.flatnonzero(over):
                    last[i] = self.frames[i].copy()
                final = {"final_obs": last, "_final_obs": over, "final_info": self._info(over, told, over)}
                final["_final_info"] = over.copy()
        else:  # what NEXT_STEP dreamed after a lane's end is thrown away
            rewards[over], terminated[over], truncated[over] = 0, False, False
        if over.any():
            self._begin(over, {})
        return self.frames.copy(), rewards, terminated, truncated, self._info(every, told, ~over) | final

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Step every lane, whether it has ended or not: rewards, terminations, truncations, and the step's figures.

        The frames are in `self.frames`, the game variables in `self.variables`.
        """
        step = self.dream.step(self.begun("stepping"), np.asarray(actions))
        self.elapsed += 1
        self.frames, self.variables = step.frames[:, -1].cpu().numpy(), step.variables.cpu().numpy()
        terminated = step.terminated.cpu().numpy()
        truncated = ~terminated & (0 < self.limit <= self.elapsed)
        self.ended = terminated | truncated
        told = {name: getattr(step, name).cpu().numpy() for name in ("end", "log_likelihood", "entropy")}
        expected = step.expected.double().cpu().numpy().T
        told |= {f"expected_{name}": values for name, values in zip(self.world.variables, expected, strict=True)}
        if self.dream.stride > 1:
            told["frames"] = step.frames.cpu().numpy()
        return step.reward.double().cpu().numpy(), terminated.copy(), truncated, told

    def begun(self, what: str) -> Lanes:
        """The lanes, or a `UserError` before the first reset."""
        if self.lanes is None:
            raise UserError(f"reset the dream before {what} it")
        return self.lanes

    @cached_property
    def made_of(self) -> dict[str, str]:
        """What a snapshot must have in common with who restores it."""
        parts = {part: digest(self.folder / part) for part in ("vqvae", "prior", "outcome")}
        return parts | {"precision": str(self.dream.prior.start.dtype), "device": self.dream.device.type}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The lanes' frames (h, w, 3), with `render_mode="rgb_array"`."""
        self.begun("rendering")
        return tuple(self.frames.copy()) if self.render_mode == "rgb_array" else None

    def snapshot(self) -> dict[str, Any]:
        """Everything the dream knows now; `restore` takes any number of futures from it, and so does that of any other
        environment of the same models, precision and kind of device. It may be pickled."""
        lanes = self.begun("taking a snapshot of").clone()
        names = {layer: name for name, layer in self.dream.layers.items()}
        memory = {names[layer]: past for layer, past in lanes.memory.items()}
        state = copy.deepcopy({name: getattr(self, name) for name in STATE})
        return state | {"made_of": self.made_of, "lanes": replace(lanes, memory={}), "memory": memory}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot: the same actions from here give the same dream."""
        if not isinstance(snapshot, dict) or not {*STATE, "made_of", "lanes", "memory"} <= snapshot.keys():
            raise UserError("this is no snapshot; give what snapshot() returned")
        if differs := difference(snapshot["made_of"], self.made_of):
            raise UserError(f"this snapshot is of another dream: it has {differs}; open the one that it was taken of")
        if len(snapshot["frames"]) != self.num_envs:
            raise UserError(f"this snapshot is of {len(snapshot['frames'])} lanes, not of {self.num_envs}")
        memory = {self.dream.layers[name]: past for name, past in snapshot["memory"].items()}
        state = copy.deepcopy({name: snapshot[name] for name in STATE})
        vars(self).update(state | {"lanes": replace(snapshot["lanes"], memory=memory).clone()})

    def fork(self, n: int, seed: int | None = None) -> DreamVectorEnv:
        """n copies of each lane, side by side, as an environment of its own without autoreset.

        Under the same actions all copies of a lane dream what it would have dreamed. With a seed each copy has other
        luck from here on.
        """
        if n < 1:
            raise UserError(f"a lane can be forked into 1 copy or more, not {n}")
        index = np.repeat(np.arange(self.num_envs), n)
        other = copy.copy(self)
        other.lanes = self.begun("forking").take(torch.from_numpy(index))
        other.mode = AutoresetMode.DISABLED
        other.metadata = self.metadata | {"autoreset_mode": other.mode}
        other._size(len(index))
        vars(other).update({name: getattr(self, name)[index] for name in STATE if name != "rngs"})
        other.rngs = [copy.deepcopy(self.rngs[i]) for i in index]
        if seed is not None:
            seeds = np.random.SeedSequence(seed).generate_state(len(index), np.uint64).tolist()
            other.lanes.seed(seeds)
            other.rngs = [seeding.np_random(s)[0] for s in seeds]
        return other

    def _begin(self, mask: np.ndarray, options: dict[str, Any]) -> None:
        """Start the lanes of the mask anew."""
        index = np.flatnonzero(mask)
        context = self._context(index, options)
        seeds = [int(self.rngs[i].integers(2**63)) for i in index]
        time = None if mask.all() or self.lanes is None else self.lanes.cache.time
        lanes, frames, variables = self.dream.reset(context, seeds, time)
        if time is None:
            shape = (self.num_envs, *self.world.frame_shape)
            self.lanes, self.frames = lanes, np.zeros(shape, np.uint8)
            self.variables = np.zeros((self.num_envs, len(self.world.variables)), np.float32)
            self.elapsed, self.ended = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        else:
            assert self.lanes is not None
            self.lanes.put(torch.from_numpy(index), lanes)
            self.frames, self.variables, self.ended = self.frames.copy(), self.variables.copy(), self.ended.copy()
        self.frames[index], self.variables[index] = frames.cpu().numpy(), variables.cpu().numpy()
        self.elapsed[index], self.ended[index] = 0, False

    def _context(self, index: np.ndarray, options: dict[str, Any]) -> Context:
        unknown = options.keys() - {"context", "frames", "actions", "variables"}
        if unknown:
            raise UserError(
                f"reset takes no option {sorted(unknown)[0]!r}; it takes context, or frames with actions and variables"
            )
        if options.keys() & {"frames", "actions", "variables"}:
            if not {"frames", "actions"} <= options.keys():
                raise UserError("a context of one's own has both frames and the actions between them")
            if "context" in options:
                raise UserError("reset takes a context by number or frames of one's own, not both")
            variables = options.get("variables")
            frames, actions = (np.asarray(options[name])[None] for name in ("frames", "actions"))
            if variables is not None:
                known = np.asarray(variables, np.float32)
                variables = (known if known.ndim > 1 else np.repeat(known[None], frames.shape[1], 0))[None]
            one = self.dream.context(frames, actions, variables)
            return one[torch.zeros(len(index), dtype=torch.long)]
        if "context" in options:
            chosen = np.asarray(options["context"])
            if chosen.shape not in ((), (self.num_envs,)) or len(options) > 1:
                raise UserError(f"context is a number, or {self.num_envs} of them, and goes with no other option")
            chosen = np.broadcast_to(chosen, (self.num_envs,))[index]
        else:
            chosen = np.array([self.rngs[i].integers(len(self.contexts)) for i in index])
        if not np.issubdtype(chosen.dtype, np.integer) or chosen.min() < 0 or chosen.max() >= len(self.contexts):
            raise UserError(
                f"there are starting contexts 0 to {len(self.contexts) - 1}, but {options['context']} was asked for"
            )
        return self.contexts[torch.from_numpy(chosen.astype(np.int64))]

    def _info(
        self, mask: np.ndarray, told: dict[str, np.ndarray] | None = None, stepped: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Game variables of the lanes of the mask and figures of those that were stepped, in Gymnasium's form."""
        variables = dict(zip(self.world.variables, self.variables.T.astype(float), strict=True))
        info: dict[str, Any] = {}
        for values, lanes in ((variables, mask), (told, stepped)):
            if values is None or lanes is None or not lanes.any():
                continue
            for name, value in values.items():
                keep = lanes.reshape(-1, *[1] * (value.ndim - 1))
                info |= {name: np.where(keep, value, 0).astype(value.dtype), f"_{name}": lanes.copy()}
        return info
