"""Read HDF5 files of pictures and actions into a store.

    python collect/hdf5.py --source demos.hdf5 --layout robomimic --frames obs/agentview_image
    python collect/hdf5.py --source my_files --frames camera/rgb --actions control --episodes "run_*"

`--episodes` is a pattern of the groups that hold an episode each, such as `data/demo_*`; keys are names in such a
group. Without it a file is one episode, unless `--terminals` or `--timeouts` name flags: then its arrays have episode
after episode, cut after each step with a flag.

Two layouts are known by name. robomimic has a group for each episode, and pictures in `obs`. D4RL has flat arrays with
`terminals` and `timeouts`. Both may have the observation after each step too (`next_obs`, `next_observations`); the one
of the last step is then the last frame of the episode. robomimic's lists `mask/train` and `mask/valid` give the split;
there is then no test split. `collect/steps.py` documents the other decisions.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import h5py
import numpy as np

from collect.files import BrokenFile, names_digest, reason, with_labels
from collect.hdf5_groups import MASKS, groups, known, list_files, published_split
from collect.images import frames_of, is_picture
from collect.steps import StepArgs, action_spec, fill_with_steps, make_rows, numbered_names
from configs import command
from configs.written import Written
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AboveZero, Address

LAYOUTS: dict[str, dict[str, str]] = {
    "": {"actions": "actions"},
    "robomimic": {"episodes": "data/*", "actions": "actions", "rewards": "rewards", "terminals": "dones"},
    "d4rl": {"actions": "actions", "rewards": "rewards", "terminals": "terminals", "timeouts": "timeouts"},
}
"""Keys of a layout, where no flag gives another one. All but the actions may be missing in a file."""
NEXT = {"robomimic": ("obs/", "next_obs/"), "d4rl": ("observations", "next_observations")}
"""Start of the key of an observation, and of the key of the observation after a step."""


@dataclass(frozen=True, kw_only=True)
class Args(StepArgs):
    """Read HDF5 files of pictures and actions."""

    out: Address = Address("runs/hdf5/data.zarr")
    """Store to write; an unfinished one resumes."""
    layout: Literal["", "robomimic", "d4rl"] = ""
    """Layout known by name, which gives the keys below."""
    episodes: str = ""
    """Pattern of groups that are an episode each; by default a file is one, or is cut at its flags."""
    frames: tuple[str, ...] = ()
    """Keys of the pictures, put side by side; by default the only array of pictures."""
    actions: str = ""
    """Key of the actions, by default `actions`."""
    rewards: str = ""
    """Key of the rewards; without it they are 0."""
    terminals: str = ""
    """Key of the flags that an action ended the episode."""
    timeouts: str = ""
    """Key of the flags that an episode was cut off after an action."""
    variables: tuple[str, ...] = ()
    """Keys of numbers to store as variables, such as obs/robot0_eef_pos."""
    fps: AboveZero = 10.0
    """Frames per second."""


@dataclass(frozen=True)
class Part:
    """Where an episode is: its file and group, its first and last action and published split, or why it is broken."""

    path: Path
    group: str = "/"
    start: int = 0
    stop: int = 0
    split: int | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{self.path}{'' if self.group == '/' else ': ' + self.group}"


def key_of(args: Args, group: h5py.Group, name: str) -> str:
    """The key that a flag or the layout gives; "" if there is none."""
    given = getattr(args, name)
    key = given or LAYOUTS[args.layout].get(name, "")
    if not key or isinstance(group.get(key), h5py.Dataset):
        return key
    if given or name == "actions":
        raise UserError(f"there is no array {key}, only {known(group)}; choose one with --{name}")
    return ""


def picture_keys(args: Args, group: h5py.Group) -> tuple[str, ...]:
    """The keys of the pictures: those of the flag, or the only one."""
    for key in args.frames:
        if not isinstance(group.get(key), h5py.Dataset):
            raise UserError(f"there is no array {key}, only {known(group)}; choose one with --frames")
        if not is_picture(group[key].shape[1:], group[key].dtype):
            raise UserError(
                f"{key} is an array of {group[key].dtype} with shape {group[key].shape}, not uint8 pictures; choose "
                f"another of {known(group)} with --frames"
            )
    if args.frames:
        return args.frames
    found: list[str] = []

    def note(key: str, value: Any) -> None:
        picture = isinstance(value, h5py.Dataset) and is_picture(value.shape[1:], value.dtype) and len(value.shape) > 3
        if picture and not key.startswith("next_"):
            found.append(key)

    group.visititems(note)
    if len(found) != 1:
        what = (
            f"several arrays of pictures, {', '.join(found)}" if found else f"no array of pictures, but {known(group)}"
        )
        raise UserError(f"it has {what}; choose with --frames")
    return tuple(found)


def check_keys(args: Args, group: h5py.Group) -> None:
    """`UserError` if a key of pictures, rewards or variables is not there."""
    picture_keys(args, group)
    key_of(args, group, "rewards")
    for key in args.variables:
        if not isinstance(group.get(key), h5py.Dataset):
            raise UserError(f"there is no array {key}, only {known(group)}; choose with --variables")


def parts_of(
    args: Args, group: h5py.Group, path: Path, whole: bool, split: int | None
) -> Iterator[tuple[Part, np.ndarray]]:
    """The episodes of a group, with their actions; one if it is a whole episode."""
    key = key_of(args, group, "actions")
    actions = np.asarray(group[key])
    if not actions.size or actions.dtype.kind not in "iubf":
        raise UserError(
            f"{key} is an array of {actions.dtype} with shape {actions.shape}, not of numbers; choose others "
            "with --actions"
        )
    check_keys(args, group)
    keys = [key for name in ("terminals", "timeouts") if (key := key_of(args, group, name))]
    ends = [] if whole else sorted({int(i) + 1 for key in keys for i in np.flatnonzero(group[key][()])})
    for start, stop in zip([0, *ends], [*ends, len(actions)], strict=True):
        if start < stop:
            yield Part(path, str(group.name), start, stop, split), actions[start:stop]


def find_parts(args: Args) -> tuple[list[Part], ActionSpec]:
    """All episodes, and the space of their actions; `UserError` for a wrong key if it is wrong everywhere."""
    parts: list[Part] = []
    actions: list[np.ndarray] = []
    wrong: list[UserError] = []

    @contextlib.contextmanager
    def noting(part: Part) -> Iterator[None]:
        """Note why a file or a group cannot be read, and go on with the next."""
        try:
            yield
        except UserError as error:
            wrong.append(UserError(f"{part}: {error}"))
            parts.append(replace(part, why=str(wrong[-1])))
        except Exception as error:  # h5py raises errors of many types
            parts.append(replace(part, why=f"{part}: {reason(error)}; download it again"))

    pattern = args.episodes or LAYOUTS[args.layout].get("episodes", "")
    for path in list_files(args.source):
        with noting(Part(path)), h5py.File(path) as file:
            episodes = groups(file, pattern)
            splits = published_split(file, episodes) if args.layout == "robomimic" else {}
            for group in episodes:
                with noting(Part(path, str(group.name))):
                    found = list(parts_of(args, group, path, bool(pattern), splits.get(str(group.name))))
                    parts += [part for part, _ in found]
                    actions += [taken for _, taken in found]
    if wrong and not actions:
        raise wrong[0]
    return use_split(parts), action_spec(actions, args.source, args.low, args.high)


def use_split(parts: list[Part]) -> list[Part]:
    """The parts with their published split if it is complete, in all files; else without it, which is printed."""
    given = {part.split for part in parts if not part.why}
    if given == set(MASKS.values()):
        return parts
    if given - {None}:
        why = "not all files have these lists" if None in given else "all episodes are in the same list"
        print(f"the split of mask/train and mask/valid is not used, because {why}")
    return [replace(part, split=None) for part in parts]


def read_part(args: Args, spec: ActionSpec, part: Part) -> Sequence[Episode]:
    """An episode; `BrokenFile` if it cannot be read."""
    if part.why:
        raise BrokenFile(part.why)
    try:
        with h5py.File(part.path) as file:
            return (make_episode(args, spec, file[part.group], part),)
    except Exception as error:  # h5py raises errors of many types
        raise BrokenFile(f"{part}: {reason(error)}; repair it or download it again") from None


def make_episode(args: Args, spec: ActionSpec, group: h5py.Group, part: Part) -> Episode:
    """The rows of an episode."""

    def steps(name: str) -> np.ndarray | None:
        key = key_of(args, group, name)
        return group[key][part.start : part.stop] if key else None

    frames = frames_of([observed(args, group, key, part) for key in picture_keys(args, group)], args.size)
    numbers = [observed(args, group, key, part).reshape(len(frames), -1) for key in args.variables]
    variables = np.concatenate(numbers, axis=1) if numbers else None
    actions = np.asarray(steps("actions"))
    rows = make_rows(frames, actions, spec, steps("rewards"), steps("terminals"), variables)
    return rows if part.split is None else with_labels(rows, split=part.split)


def observed(args: Args, group: h5py.Group, key: str, part: Part) -> np.ndarray:
    """The observations of an episode, with the one after its last step if it is there."""
    before, after = NEXT.get(args.layout, (key, ""))
    then = group.get(after + key.removeprefix(before)) if after and key.startswith(before) else None
    if then is not None:
        return np.concatenate([group[key][part.start : part.stop], then[part.stop - 1 : part.stop]])
    one_more = not part.start and part.stop == len(group[key]) - 1
    return group[key][part.start : part.stop + one_more]


def make_env_spec(args: Args, spec: ActionSpec, parts: Sequence[Part]) -> EnvSpec:
    """The spec of the data, with shapes from the first episode that can be read."""
    for part in parts:
        try:
            first = read_part(args, spec, part)[0]
        except BrokenFile:
            continue
        with h5py.File(part.path) as file:
            widths = [(key, int(np.prod(file[part.group][key].shape[1:]))) for key in args.variables]
        names = numbered_names(widths)
        shape: Any = first["frames"].shape[1:]
        return EnvSpec(name=args.source.resolve().stem, frame_shape=shape, action=spec, variables=names, fps=args.fps)
    return EnvSpec(name=args.source.resolve().stem, action=spec)


def main(args: Args) -> Written:
    parts, spec = find_parts(args)
    how = {name: getattr(args, name) for name in ("layout", "actions", "rewards", "terminals", "timeouts", "episodes")}
    how |= {"frames": list(args.frames), "variables": list(args.variables)}
    root = args.source if args.source.is_dir() else args.source.parent
    published = any(part.split is not None for part in parts)
    files = names_digest(
        f"{p.path.relative_to(root)} {p.group} {p.start} {p.stop}{f' {p.split}' if published else ''}" for p in parts
    )
    n_episodes = 0 if published else sum(not part.why for part in parts)  # with 0 none is cut by time
    return fill_with_steps(
        args, make_env_spec(args, spec, parts), parts, partial(read_part, args, spec), n_episodes, **how, files=files
    )


if __name__ == "__main__":
    command(main, "collect")
