"""Makes a store's rows from steps that other software recorded, for the readers of robot and offline data.

Last step. Most formats have as many actions as frames: the frame after the last action was not recorded. That action is
dropped, because its next frame is missing. Its reward and its termination go to the step before, so that an episode
keeps its return, and a success in its last step is not lost.

Actions. Whole numbers are a Discrete or MultiDiscrete space, all others a Box. Its bounds are the range of all actions
in the data, unless they are given.

Split. With fewer than ten episodes a split of whole episodes may lack validation or test. If it does, each episode is
cut by time: of ten blocks the sixth is for validation, the last one for testing, and the others stay together for
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from collect.episodes import segment
from collect.files import BrokenFile, Item, Read, ReaderArgs, fill_store, not_finite, with_labels
from configs.written import Written, recorded
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode
from worldmodel.data.zarr_format import SPLITS, draw_splits
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import PixelsOr0

N_BLOCKS, MIN_BLOCK = 10, 16
"""Blocks of time of an episode, and the fewest frames of one: the paper's clip length. Short episodes have fewer."""

MAX_CHOICES = 2**16
"""Whole numbers from this on are not choices but amounts, so they make a Box."""


@dataclass(frozen=True, kw_only=True)
class StepArgs(ReaderArgs):
    """Settings of all readers of steps."""

    source: Path = Path()
    """A file, or a folder of files."""
    size: PixelsOr0 = 64
    """Height and width to scale each picture to; 0 keeps its size."""
    low: tuple[float, ...] = ()
    """Lower bound of an action, one number or one for each dimension; by default the lowest in the data."""
    high: tuple[float, ...] = ()
    """Upper bound of an action, likewise."""


def action_spec(
    arrays: Iterable[np.ndarray], source: Path, low_bound: Sequence[float] = (), high_bound: Sequence[float] = ()
) -> ActionSpec:
    """The space of all actions (n,) or (n, k); the width of most episodes counts.

    Args:
        arrays: The actions of each episode.
        source: Where they come from, for messages.
        low_bound: Lower bound of an action, one number or one for each dimension; by default the lowest of all.
        high_bound: Upper bound, likewise.
    """
    ranges: dict[int, ActionRange] = {}
    unusable = False
    for array in arrays:
        table = array.reshape(len(array), -1) if array.size and array.dtype.kind in "iubf" else np.zeros((0, 1))
        with np.errstate(over="ignore"):  # as actions are stored
            table = table.astype(np.float32) if table.dtype.kind == "f" else table
        finite = table[np.isfinite(table).all(axis=1)]
        unusable = unusable or not len(finite)
        if len(finite):
            ranges.setdefault(finite.shape[1], ActionRange()).add(finite)
    if not ranges and unusable:
        raise UserError(f"{source} has no actions that are finite numbers; give data with actions")
    if not ranges:  # no episode can be read, which is reported later
        return ActionSpec(kind="Box")
    found = max(ranges.values(), key=lambda found: found.n)
    if found.whole and not (low_bound or high_bound) and found.low.min() >= 0 and found.high.max() < MAX_CHOICES:
        nvec = tuple(int(n) + 1 for n in found.high)
        return ActionSpec(kind="Discrete" if len(nvec) == 1 else "MultiDiscrete", nvec=nvec)
    low, high = bound("low", low_bound, found.low), bound("high", high_bound, found.high)
    return ActionSpec(kind="Box", low=low, high=high)


class ActionRange:
    """The range of all actions of one width."""

    def __init__(self) -> None:
        self.n, self.whole = 0, True
        self.low, self.high = np.zeros(0), np.zeros(0)

    def add(self, table: np.ndarray) -> None:
        """Add the actions (n, k) of an episode."""
        low, high = table.min(0), table.max(0)
        self.low, self.high = (np.minimum(self.low, low), np.maximum(self.high, high)) if self.n else (low, high)
        self.whole = self.whole and table.dtype.kind in "iub"
        self.n += 1


def bound(name: str, given: Sequence[float], found: np.ndarray) -> tuple[float, ...]:
    """A bound of each number of an action, in float32 as actions are stored."""
    if len(given) not in (0, 1, len(found)):
        raise UserError(f"{name} has {len(given)} numbers, but an action has {len(found)}; give one, or {len(found)}")
    values = np.broadcast_to(given or found, len(found)).astype(np.float32)
    return tuple(values.tolist())


def make_rows(
    frames: np.ndarray,
    actions: np.ndarray,
    spec: ActionSpec,
    rewards: np.ndarray | None = None,
    terminals: np.ndarray | None = None,
    variables: np.ndarray | None = None,
) -> Episode:
    """The rows of an episode.

    Args:
        frames: (n, h, w, 3).
        actions: (n - 1, ...), or (n, ...) with one after the last frame.
        spec: Their space.
        rewards: One for each action; None for zeros.
        terminals: Whether an action ended the episode; only those of the last steps count.
        variables: (n, k).

    Raises:
        UserError: The lengths do not fit, an action is outside its space, or a number is not finite.
    """
    n, steps = len(frames), len(frames) - 1
    for name, array in (("rewards", rewards), ("terminals", terminals)):
        if array is not None and len(array) != len(actions):
            raise UserError(f"it has {len(actions)} actions, but {len(array)} {name}; give one for each action")
    if steps < 1 or len(actions) not in (n, steps):
        raise UserError(
            f"it has {n} frames and {len(actions)} actions; give at least 2 frames, and as many actions as frames or "
            "one fewer"
        )
    taken = actions[:steps].reshape(steps, -1)
    if spec.kind == "Discrete" and taken.shape[1] == 1:
        taken = taken[:, 0]
    action, reward = np.zeros((n, *spec.shape), spec.dtype), np.zeros(n, np.float64)
    with np.errstate(over="ignore"):  # values that overflow float32 are outside of the space
        action[:-1] = spec.check(taken.astype(np.float32) if spec.kind == "Box" else taken)
    ended, truncated = np.zeros(n, bool), np.zeros(n, bool)
    if rewards is not None:
        reward[:steps] = rewards[:steps]
        reward[steps - 1] += rewards[steps:].sum()
    if terminals is not None:
        ended[-2] = bool(terminals[steps - 1 :].any())
    truncated[-2] = not ended[-2]
    with np.errstate(over="ignore"):  # values that overflow float32 are reported below
        rows = {
            "frames": frames,
            "action": action,
            "reward": reward.astype(np.float32),
            "terminated": ended,
            "truncated": truncated,
            "variables": np.zeros((n, 0), np.float32) if variables is None else variables.astype(np.float32),
        }
    if len(rows["variables"]) != n:
        raise UserError(f"it has {n} frames, but {len(rows['variables'])} rows of variables; give one for each frame")
    if why := not_finite(rows):
        raise UserError(why)
    return rows


def too_few(n_episodes: int, seed: int, what: str, least: int = MIN_BLOCK) -> bool:
    """Whether episodes have to be cut by time, because a split of whole ones would lack a part; a message says so."""
    few = n_episodes > 0 and lacks_split(n_episodes, seed)
    if few:
        print(
            f"there are too few {what} to split ({n_episodes}); each with at least {len(SPLITS) * least} frames is "
            "cut by time instead: a block in the middle is for validation, the last one for testing, the rest for "
            "training"
        )
    return few


def lacks_split(n_episodes: int, seed: int) -> bool:
    """Whether a split of this many whole episodes would lack validation or test."""
    return len(set(draw_splits(n_episodes, seed))) < len(SPLITS)


def cut_in_time(episode: Episode, least: int = MIN_BLOCK) -> list[Episode]:
    """Parts of an episode for training, validation and testing, each of `least` frames or more.

    An episode that is too short for this is for training as a whole.
    """
    n = len(episode["frames"])
    blocks = min(N_BLOCKS, n // least)
    if blocks < len(SPLITS):
        return [with_labels(episode, split=0)]
    edges = [n * i // blocks for i in range(blocks + 1)]
    held = blocks // 2
    bounds = ((0, held, 0), (held, held + 1, 1), (held + 1, blocks - 1, 0), (blocks - 1, blocks, 2))
    return [with_labels(segment(episode, edges[a], edges[b]), split=split) for a, b, split in bounds if a < b]


def checked(read: Read[Item], env_spec: EnvSpec, in_time: bool, least: int, item: Item) -> list[Episode]:
    """The episodes of an item, cut by time into parts of `least` frames if asked.

    Raises:
        BrokenFile: If their shapes are not those of the store.
    """
    episodes = read(item)
    for rows in episodes:
        shape, n = rows["frames"].shape[1:], rows["variables"].shape[1]
        if shape != env_spec.frame_shape or n != len(env_spec.variables):
            raise BrokenFile(
                f"{item}: it has frames {shape} and {n} variables, but the first episode has {env_spec.frame_shape} "
                f"and {len(env_spec.variables)}; read it into another store"
            )
    return [part for rows in episodes for part in (cut_in_time(rows, least) if in_time else (rows,))]


def fill_with_steps(
    args: ReaderArgs,
    env_spec: EnvSpec,
    items: Sequence[Item],
    read: Read[Item],
    n_episodes: int,
    least: int = MIN_BLOCK,
    **how: Any,
) -> Written:
    """Fill a store like `fill_store`. If there are few episodes, they are cut by time into parts of `least` frames."""
    in_time = too_few(n_episodes, args.seed, "episodes", least)
    how |= {"shortest_part": least} if in_time and least != MIN_BLOCK else {}
    fill_store(args, env_spec, items, partial(checked, read, env_spec, in_time, least), cut_in_time=in_time, **how)
    return recorded(args.out)


def print_action_range(out: str | Path) -> None:
    """Print the range of the actions of a store, without the last row of each episode, which has no action."""
    store = Store(out)
    actions = np.delete(store.read("action", 0, store.n_rows), store.episode_ends - 1, axis=0)
    print(f"actions range from {actions.min(0).tolist()} to {actions.max(0).tolist()}")


def numbered_names(widths: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """A name for each number of the variables, from the key of each variable and how many numbers it has."""
    return tuple(f"{key}_{i}" if n > 1 else key for key, n in widths for i in range(n))
