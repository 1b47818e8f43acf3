"""Convert between stores and Minari, Farama's format for offline reinforcement learning.

    python collect/minari.py --dataset my/doom-v0 --out runs/doom/data.zarr          # from Minari into a store
    python collect/minari.py --export runs/doom/data.zarr --dataset my/doom-v0       # from a store to Minari

Both formats have n actions for n + 1 frames; a store pads the actions by one row. A store that is exported and read
again is identical bit by bit. Frames are written raw, not as Minari's JPEGs. Arrays that Minari does not have
(variables, labels, splits) are written as infos, and the environment spec as metadata.

Other Minari data sets can be read if their observations are images, or dictionaries with images at any depth (`--image
robot/camera`). Channels may come first or last. Several images are put side by side. The other numbers and vectors of
the observation become variables. If there are too few episodes to split, each is cut by time (`collect/steps.py`).

Nothing is downloaded; use `minari download`. Minari is an extra: `pip install 'worldmodel[minari]'`.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from gymnasium import spaces

from collect.files import BrokenFile, ReaderArgs, fill_store, not_finite
from collect.images import frames_of, is_picture
from collect.steps import fill_with_steps, numbered_names
from configs import command
from configs.written import Written, recorded
from envs.spaces import to_action_spec, to_gym_space
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.opening import open_store
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.extras import extra
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Address, PixelsOr0, Seed, Settings, Workers

if TYPE_CHECKING:
    from minari import MinariDataset

METADATA_KEY = "worldmodel"
"""Metadata key of an exported store: its environment spec, and the arrays that are infos."""
STEP_ARRAYS = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}
"""Our arrays of steps, and Minari's names."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Read a Minari data set, or write one."""

    dataset: str = ""
    """Id of the Minari data set, such as my/doom-v0, or its folder when reading."""
    out: Address = Address("runs/minari/data.zarr")
    """Store to write; an unfinished one resumes."""
    export: Address = Address("")
    """Store to export to Minari; by default the data set is read instead."""
    image: tuple[str, ...] = ()
    """Paths of images in dictionary observations, such as robot/camera; by default the only image."""
    size: PixelsOr0 = 0
    """Height and width to scale images to; 0 keeps their size."""
    num_workers: Workers = min(os.cpu_count() or 1, 16)
    """Number of processes that read."""
    seed: Seed = 0
    """Seed of the split, if the data set has none."""


def dataset_folder(dataset: str) -> Path:
    """The folder of a data set, which may not exist; `UserError` for an invalid id."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    if (Path(dataset) / "data").is_dir() or (Path(dataset) / "metadata.json").is_file():
        return Path(dataset) if (Path(dataset) / "metadata.json").is_file() else Path(dataset) / "data"
    try:
        parse_dataset_id(dataset)
    except (ValueError, TypeError):
        raise UserError(f"{dataset!r} is not a Minari data set; give an id such as my/doom-v0, or a folder") from None
    return get_dataset_path(dataset) / "data"


@functools.lru_cache(maxsize=1)
def open_dataset(folder: Path) -> MinariDataset:
    from minari import MinariDataset

    try:
        return MinariDataset(folder)
    except Exception as error:  # Minari's storages raise errors of many types
        raise UserError(f"{folder} cannot be opened by Minari ({one_line(error)}); download it again") from None


def stored_metadata(dataset: MinariDataset) -> tuple[EnvSpec, list[str]] | None:
    """The environment spec and the info arrays of an exported store; None for other data sets."""
    if METADATA_KEY not in dataset.storage.metadata:
        return None
    try:
        mine = json.loads(dataset.storage.metadata[METADATA_KEY])
        return EnvSpec.from_json(mine["world"], f"{dataset.id}: world"), [str(name) for name in mine["infos"]]
    except Exception as error:  # invalid JSON, or other fields
        raise UserError(
            f"{dataset.id} has a damaged {METADATA_KEY} in its metadata ({one_line(error)}); download it again"
        ) from None


def parts_of(value: Any, path: str = "") -> dict[str, Any]:
    """The parts of an observation, or of its space, by path; "" if it has none."""
    inside = value.spaces if isinstance(value, spaces.Dict | spaces.Tuple) else value
    if not isinstance(inside, dict | tuple):
        return {path: value}
    named = inside.items() if isinstance(inside, dict) else enumerate(inside)
    return {k: v for key, part in named for k, v in parts_of(part, f"{path}/{key}".lstrip("/")).items()}


def image_paths(dataset: MinariDataset, image: Sequence[str]) -> tuple[str, ...]:
    """The paths of the images in the observations; ("",) if the observation is the image."""
    parts = parts_of(dataset.observation_space).items()
    pictures = [path for path, space in parts if isinstance(space, spaces.Box) and is_picture(space.shape, space.dtype)]
    if set(image) <= set(pictures) and (image or len(pictures) == 1):
        return tuple(image or pictures)
    known = (
        f"choose one with --image: {', '.join(pictures)}" if pictures else "record the environment with collect/gym.py"
    )
    what = "no such uint8 image" if image else "several uint8 images" if pictures else "no uint8 image"
    raise UserError(f"{dataset.id} has {what} in its observations; {known}")


def vectors(dataset: MinariDataset) -> dict[str, int]:
    """The paths of numbers and vectors in the observations, and how many numbers they have."""
    plain = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
    parts = parts_of(dataset.observation_space).items()
    shapes = {path: space.shape or () for path, space in parts if isinstance(space, plain)}
    return {path: math.prod(shape) for path, shape in shapes.items() if len(shape) < 2}


def make_env_spec(dataset: MinariDataset, paths: Sequence[str], size: int) -> EnvSpec:
    """The spec of the exported store, or one derived from another data set."""
    parts = parts_of(dataset.observation_space)
    shape = frames_of([np.zeros((1, *parts[path].shape), np.uint8) for path in paths], size).shape[1:]
    if mine := stored_metadata(dataset):
        known, _ = mine
        return known if known.frame_shape == shape else replace(known, frame_shape=shape, env_id="", env_kwargs={})
    whole = shape == dataset.observation_space.shape
    spec = dataset.env_spec if whole else None
    return EnvSpec(
        name=dataset.id.replace("/", "-"),
        env_id=spec.id if spec else "",
        env_kwargs=dict(spec.kwargs) if spec else {},
        frame_shape=shape,
        action=to_action_spec(dataset.action_space),
        variables=numbered_names(vectors(dataset).items()),
        max_episode_steps=(dataset.env_spec.max_episode_steps or 0) if dataset.env_spec else 0,
    )


def read_file(folder: Path, paths: Sequence[str], size: int, i: int) -> Sequence[Episode]:
    """An episode of a data set; `BrokenFile` if it cannot be read."""
    try:
        return (make_episode(open_dataset(folder), paths, size, i),)
    except Exception as error:  # storages raise errors of many types
        raise BrokenFile(f"{folder}: episode {i}: {one_line(error)}; download it again") from None


def make_episode(dataset: MinariDataset, paths: Sequence[str], size: int, i: int) -> Episode:
    """The rows of an episode."""
    data = dataset[i]
    parts = parts_of(data.observations)
    frames = frames_of([np.asarray(parts[path]) for path in paths], size)
    rows = {"frames": frames}
    for ours, theirs in STEP_ARRAYS.items():
        array = np.asarray(getattr(data, theirs))
        if len(array) != len(frames) - 1:
            raise UserError(f"it has {len(frames)} observations, but {len(array)} {theirs}")
        array = to_action_spec(dataset.action_space).check(array) if ours == "action" else array
        rows[ours] = np.concatenate([array, np.zeros_like(array[:1])])
    with np.errstate(over="ignore"):  # values that overflow float32 are reported below
        rows["reward"] = rows["reward"].astype(np.float32)
    rows["terminated"], rows["truncated"] = rows["terminated"].astype(bool), rows["truncated"].astype(bool)
    if mine := stored_metadata(dataset):
        rows |= {name: np.asarray(data.infos[name]) for name in mine[1]}
    else:
        numbers = [np.asarray(parts[path]).reshape(len(frames), n) for path, n in vectors(dataset).items()]
        none = np.zeros((len(frames), 0))  # so that `variables` exists: dreams need the array
        with np.errstate(over="ignore"):
            rows["variables"] = np.concatenate([none, *numbers], axis=1).astype(np.float32)
    check(rows, make_env_spec(dataset, paths, size))
    return rows


def check(rows: Episode, env_spec: EnvSpec) -> None:
    """`UserError` for arrays of the wrong shape or type, or with numbers that are not finite."""
    wanted: dict[str, tuple[tuple[int, ...], Any]] = {
        "frames": (env_spec.frame_shape, np.uint8),
        "action": (env_spec.action.shape, env_spec.action.dtype),
        "variables": ((len(env_spec.variables),), np.float32),
        **dict.fromkeys(("terminated", "truncated"), ((), bool)),
        **dict.fromkeys(("label", "split"), ((), np.int64)),
        "reward": ((), np.float32),
    }
    n = len(rows["frames"])
    for name, array in rows.items():
        shape, kind = wanted.get(name, (array.shape[1:], array.dtype))
        if array.shape != (n, *shape) or array.dtype != kind:
            raise UserError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(kind)} {(n, *shape)}")
    if why := not_finite(rows):
        raise UserError(why)


def import_dataset(args: Args) -> None:
    folder = dataset_folder(args.dataset)
    if not folder.exists():
        raise UserError(f"there is no data set {args.dataset} in {folder.parent}; get it with `minari download`")
    dataset = open_dataset(folder)
    paths = image_paths(dataset, args.image)
    files = ReaderArgs(source=folder, out=args.out, num_workers=args.num_workers, seed=args.seed)
    made: dict[str, Any] = {"dataset": dataset.id, "image": " ".join(paths)} | (
        {"size": args.size} if args.size else {}
    )
    env_spec, read = make_env_spec(dataset, paths, args.size), partial(read_file, folder, paths, args.size)
    if stored_metadata(dataset):  # an exported store, which is read back unchanged
        fill_store(files, env_spec, range(len(dataset)), read, **made)
    else:
        fill_with_steps(files, env_spec, range(len(dataset)), read, len(dataset), **made)


def export_store(args: Args) -> Path:
    """Write a store to Minari, completely or not at all; returns the folder."""
    store = open_store(args.export)
    missing = [name for name in ("frames", *STEP_ARRAYS) if name not in store.array_names]
    if missing:
        raise UserError(f"{args.export} has no array {missing[0]}, which Minari needs; export a recorded store")
    folder = dataset_folder(args.dataset)
    if folder.exists():
        raise UserError(
            f"{args.dataset} already exists, perhaps from a killed export; `minari delete` it, or use another id"
        )
    try:
        write_dataset(store, args.dataset)
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    print(f"data: {args.dataset}: {len(store.episode_ends):,} episodes, {store.n_rows:,} frames")
    return folder.parent


def write_dataset(store: Store, dataset: str) -> None:
    import minari

    infos = [name for name in store.array_names if name not in ("frames", *STEP_ARRAYS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a missing author and environment
        made = minari.create_dataset_from_buffers(
            dataset,
            [],
            observation_space=spaces.Box(0, 255, store.env_spec.frame_shape, np.uint8),
            action_space=to_gym_space(store.env_spec.action),
            description=f"Recorded from {store.env_spec.name}.",
            jpeg_encoding=False,
        )
    made.storage.update_metadata({METADATA_KEY: json.dumps({"world": store.env_spec.to_json(), "infos": infos})})
    made.storage.update_episodes(episode_buffers(store, infos))


def episode_buffers(store: Store, infos: Sequence[str]) -> Iterator[Any]:
    """A store's episodes as Minari's buffers, one in memory at a time."""
    from minari.data_collector import EpisodeBuffer

    for i in Progress(range(len(store.episode_ends)), unit=" episodes", desc=store.env_spec.name):
        rows = store.read_episode(i)
        steps = {theirs: rows[ours][:-1] for ours, theirs in STEP_ARRAYS.items()}
        yield EpisodeBuffer(observations=rows["frames"], **steps, infos={n: rows[n] for n in infos})


def main(args: Args) -> Written:
    with extra("minari"):
        import minari  # noqa: F401
    if not args.dataset:
        raise UserError("no data set was given; name one, such as --dataset my/doom-v0")
    if args.export:
        return Written(export_store(args))
    import_dataset(args)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
