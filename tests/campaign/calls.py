"""Calls of the environments in which one good value is replaced by a hostile one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

import envs  # noqa: F401 - registers them
from envs.dream import DreamEnv
from envs.pushing import Pushing
from envs.sb3 import SB3VecEnv
from envs.vector import DreamVectorEnv
from envs.vizdoom import VizdoomFrames
from tests.campaign.values import INF, NAN, VALUES, Good, among, array, numbers, optional, real, shown, whole

LANES = 3
Env = DreamEnv | DreamVectorEnv
SEED = optional(whole(0, 2**64 - 1))
STEPS = optional(whole(0))
DRAWING: dict[str, Good] = {
    "sample_done": lambda x: isinstance(x, bool | np.bool_),
    "temperature": real(lambda x: x == 0 or x >= 1e-6),
    "top_k": whole(0),
    "top_p": real(lambda x: 0 < x <= 1),
    "precision": among("auto", "float32", "bfloat16"),
    "device": among("cpu"),
    "horizon": STEPS,
}
ONE = DRAWING | {"render_mode": among(None, "rgb_array", "human"), "model": among(), "world": among()}
MANY = ONE | {
    "render_mode": among(None, "rgb_array"),
    "num_envs": whole(1, 64),
    "max_episode_steps": STEPS,
    "autoreset_mode": among("Disabled", AutoresetMode.SAME_STEP),
}
ENGINE = {"size": whole(1, 4096), "frame_skip": whole(1), "horizon": optional(whole(0)), "scenario": among()}
BIN = {"size": whole(1, 256), "horizon": whole(1)}
MODES = {"render_mode": among(None, "rgb_array", "human")}
KINDS: list[tuple[Callable[..., Any], dict[str, Good]]] = [
    *((DreamEnv, ONE), (DreamVectorEnv, MANY), (VizdoomFrames, ENGINE | MODES), (Pushing, BIN | MODES)),
    (SB3VecEnv, {"env": among()}),
]
"""What can be made, its arguments, and when a value of each is good."""


@dataclass(frozen=True)
class Call:
    """Something to be called, and whether it should be taken."""

    what: str
    do: Callable[[], Any]
    good: bool


def vector(env: Env) -> DreamVectorEnv:
    """The lanes of a dream."""
    return env if isinstance(env, DreamVectorEnv) else env.vector_env


def knows(env: Env) -> list[Any]:
    """All that a dream knows, in a form that can be compared."""
    moment = vector(env).snapshot()
    lanes = moment["lanes"]
    tensors = [*lanes.tensors(), *moment["memory"].values()]
    arrays = [moment[name] for name in ("frames", "variables", "elapsed", "done")]
    luck = [rng.bit_generator.state for rng in moment["rngs"]]
    return [
        *(x.tobytes() for x in arrays),
        *(x.numpy().tobytes() for x in tensors),
        luck,
        lanes.kv_cache.time,
        lanes.kv_cache.n_cached,
    ]


def hostile(rng: np.random.Generator) -> Any:
    return VALUES[rng.integers(len(VALUES))]


def close(env: Any) -> None:
    env.close()


def make(run: Path, rng: np.random.Generator) -> Call:
    """An environment by its class."""
    kind, arguments = KINDS[rng.integers(len(KINDS))]
    name, value = str(rng.choice(list(arguments))), hostile(rng)
    own = {"model": run} if kind in (DreamEnv, DreamVectorEnv) and name not in ("model", "world") else {}
    good = arguments[name](value)
    return Call(f"{kind.__name__}({name}={shown(value)})", lambda: close(kind(**own | {name: value})), good)


def made(run: Path, rng: np.random.Generator) -> Call:
    """A dream by way of Gymnasium, which passes these arguments on as they are."""
    name, value = str(rng.choice(list(DRAWING))), hostile(rng)
    by, own = ((gym.make, {}), (gym.make_vec, {"num_envs": 2}))[rng.integers(2)]
    do = lambda: close(by("VideoGPTDream-v0", model=run, **own | {name: value}))  # type: ignore[operator]  # noqa: E731
    return Call(f"{by.__name__}({name}={shown(value)})", do, DRAWING[name](value))  # type: ignore[attr-defined]


def reset(env: Env, rng: np.random.Generator) -> Call:
    """Seeds and options of a reset of n lanes."""
    value, contexts, n = hostile(rng), len(env.contexts), vector(env).num_envs
    listed = isinstance(value, list | tuple | range | np.ndarray) and np.ndim(numbers(value)) == 1
    each = listed and len(value) == n and isinstance(env, DreamVectorEnv)
    good: dict[str, bool] = {
        "seed": all(map(SEED, value)) if each else SEED(value),
        "options": value is None or value == {} if isinstance(value, dict | None) else False,
        "context": array(((), (n,)), "iu", contexts)(value),
        "reset_mask": array(((n,),), "b")(value) and bool(np.any(value)),
    }
    name = str(rng.choice(list(good)))
    given = {name: value} if name in ("seed", "options") else {"options": {name: value}}
    return Call(f"reset({name}={shown(value)})", lambda: env.reset(**given), good[name])


def own(env: Env, rng: np.random.Generator) -> Call:
    """A reset to frames of one's own."""
    frames, actions = rng.integers(256, size=(4, 16, 16, 3)).astype(np.uint8), rng.integers(3, size=3)
    variables = rng.random((4, 1))
    wrong = [(name, value) for name in ("frames", "actions") for value in VALUES if not array(((3,),), "iub", 3)(value)]
    wrong += [("variables", value) for value in VALUES if value is not None and np.shape(numbers(value)) != (1,)]
    wrong += [("variables", value) for value in ([NAN], [INF], [1e300], [[NAN]] * 4, np.zeros((4, 2)))]
    wrong += [("frames", value) for value in (frames[:, :8], frames.astype(float), frames[:0], frames[0], frames[None])]
    wrong += [("actions", value) for value in ([0, 1, 3], [0.0, 1, 2], actions[:2], [0, 1, NAN])]
    wrong += [("more", 1), ("context", 0)]
    name, value = wrong[rng.integers(len(wrong))]
    options = {"frames": frames, "actions": actions, "variables": variables} | {name: value}
    return Call(f"reset(a context with {name}={shown(value)})", lambda: env.reset(options=options), False)


def step(env: Env, rng: np.random.Generator) -> Call:
    value, many = hostile(rng), isinstance(env, DreamVectorEnv)
    good = array(((LANES,) if many else (),), "biu", 3)(value) and not (many and vector(env).done.any())
    return Call(f"step({shown(value)})", lambda: env.step(value), good)


def restore(env: Env, rng: np.random.Generator) -> Call:
    """A snapshot of which a part is missing, is another thing, or of other lanes."""
    moment, value = env.snapshot(), hostile(rng)
    name, inner = str(rng.choice(list(moment))), str(rng.choice(["kv_cache", "hidden", "variables", "random"]))
    lanes = moment["lanes"]
    parts: list[Callable[[], Any]] = [
        lambda: value,
        lambda: {k: v for k, v in moment.items() if k != name},
        lambda: moment | {name: value},
        lambda: moment | {k: moment[k][:-1] for k in ("frames", "variables", "elapsed", "done", "rngs")},
        lambda: moment | {"frames": moment["frames"][:, :-1]},
        lambda: moment | {"memory": {"nothing": torch.zeros(LANES)}},
        lambda: moment | {"lanes": replace(lanes, **{inner: value})},
        lambda: moment | {"lanes": replace(lanes, hidden=lanes.hidden * NAN)},
        lambda: moment | {"lanes": replace(lanes, variables=lanes.variables[:, :0])},
        lambda: moment | {"lanes": replace(lanes, kv_cache=replace(lanes.kv_cache, kv=lanes.kv_cache.kv[:1]))},
    ]
    at, known = int(rng.integers(len(parts) + 1)), moment[name]
    if isinstance(value, np.ndarray) and isinstance(known, np.ndarray) and value.dtype == known.dtype:
        at = 0  # it might be another moment's
    if at == len(parts):
        return Call("restore(its own snapshot)", lambda: env.restore(moment), True)
    broken = parts[at]()
    return Call(f"restore(broken {at}: {name}, {inner}, {shown(value)})", lambda: env.restore(broken), False)


def fork(env: Env, rng: np.random.Generator) -> Call:
    value, ended = hostile(rng), bool(vector(env).done.any())
    if rng.integers(2):
        return Call(f"fork(2, seed={shown(value)})", lambda: env.fork(2, value), SEED(value) and not ended)
    return Call(f"fork({shown(value)})", lambda: env.fork(value), whole(1, 1000)(value) and not ended)
