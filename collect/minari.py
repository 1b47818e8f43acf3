"""Between stores and Minari, Farama's format for offline reinforcement learning.

    python collect/minari.py --dataset my/doom-v0 --out runs/doom/data.zarr          # from Minari into a store
    python collect/minari.py --export runs/doom/data.zarr --dataset my/doom-v0       # from a store to Minari

Both have n actions to n + 1 frames; a store pads the actions by a row, Minari does not. A store goes out and comes
back equal to the last bit: frames are written as they are, not as Minari's JPEGs, what Minari has no place for
(variables, labels, splits) travels as infos, and the world as metadata.

A data set from elsewhere comes in if its observations are pictures, or a dictionary with one (`--image`). Nothing
is downloaded; `minari download` does that. Minari is an extra: `pip install "minari[hdf5]>=0.5.4"`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: `import minari` must not find this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from collect.files import BrokenFile, ReaderArgs, fill_store, not_finite
from collect.images import is_image, resize_image
from configs import command
from envs.spaces import to_action_spec, to_gym_space
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.settings import Address, PixelsOr0, Seed, Settings, Workers

if TYPE_CHECKING:
    from minari import MinariDataset

METADATA_KEY = "worldmodel"
"""The metadata of a store that went out: its world, and its arrays that are infos."""
STEP_ARRAYS = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}
"""Our arrays of steps, and Minari's names."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Read a Minari data set, or write one."""

    dataset: str = ""
    """Its id, as in my/doom-v0, or the folder of one to read."""
    out: Path = Path("runs/minari/data.zarr")
    """The store to write; one that is not complete goes on."""
    export: Address = Address("")
    """A store to write to Minari instead."""
    image: str = ""
    """Of observations that are a dictionary, the picture; by default the only one."""
    size: PixelsOr0 = 0
    """Height and width that pictures are scaled to; 0 leaves them as they are."""
    num_workers: Workers = min(os.cpu_count() or 1, 16)
    """Processes that read."""
    seed: Seed = 0
    """Of the split where none was published."""


def require_minari() -> None:
    try:
        import minari  # noqa: F401
    except ImportError as error:
        raise UserError(f'Minari cannot be used ({error}); pip install "minari[hdf5]>=0.5.4"') from None


def dataset_folder(dataset: str) -> Path:
    """Where a data set lies, whether it is there or not; `UserError` for a name that is none."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    if (Path(dataset) / "data").is_dir() or (Path(dataset) / "metadata.json").is_file():
        return Path(dataset) if (Path(dataset) / "metadata.json").is_file() else Path(dataset) / "data"
    try:
        parse_dataset_id(dataset)
    except (ValueError, TypeError):
        raise UserError(f"{dataset!r} is no data set of Minari; give an id such as my/doom-v0, or a folder") from None
    return get_dataset_path(dataset) / "data"


@functools.lru_cache(maxsize=1)
def open_dataset(folder: Path) -> MinariDataset:
    from minari import MinariDataset

    try:
        return MinariDataset(folder)
    except Exception as error:  # each of its storages has errors of its own
        raise UserError(f"{folder} cannot be opened by Minari ({one_line(error)}); fetch it again") from None


def stored_metadata(dataset: MinariDataset) -> tuple[EnvSpec, list[str]] | None:
    """The world of a store that went out, and its arrays that are infos; nothing for a data set from elsewhere."""
    if METADATA_KEY not in dataset.storage.metadata:
        return None
    try:
        mine = json.loads(dataset.storage.metadata[METADATA_KEY])
        return EnvSpec.from_json(mine["world"], f"{dataset.id}: world"), [str(name) for name in mine["infos"]]
    except Exception as error:  # of JSON, and of a world that has other fields or none
        raise UserError(
            f"{dataset.id} has a damaged {METADATA_KEY} in its metadata ({one_line(error)}); fetch it again"
        ) from None


def image_key(dataset: MinariDataset, image: str) -> str:
    """The picture's key in a dictionary of observations; "" where the observation is the picture."""
    space = dataset.observation_space
    if is_image(space) and not image:
        return ""
    inside = dict(space.spaces) if isinstance(space, spaces.Dict) else {}
    pictures = [key for key, value in inside.items() if is_image(value)]
    if image in pictures or (not image and len(pictures) == 1):
        return image or pictures[0]
    known = f"choose one by --image: {', '.join(pictures)}" if pictures else "record the environment by collect/gym.py"
    raise UserError(f"{dataset.id} has no {'such' if image else 'one'} picture of bytes to see; {known}")


def make_env_spec(dataset: MinariDataset, key: str, size: int) -> EnvSpec:
    """The world that went out with a store, or what is known of one from elsewhere."""
    space = dataset.observation_space[key] if key else dataset.observation_space
    shape = (size or space.shape[0], size or space.shape[1], 3)
    if mine := stored_metadata(dataset):
        known, _ = mine
        return known if known.frame_shape == shape else replace(known, frame_shape=shape, env_id="", env_kwargs={})
    spec = dataset.env_spec if shape == space.shape else None
    return EnvSpec(
        name=dataset.id.replace("/", "-"),
        env_id=spec.id if spec and not key else "",
        env_kwargs=dict(spec.kwargs) if spec and not key else {},
        frame_shape=shape,
        action=to_action_spec(dataset.action_space),
        max_episode_steps=(dataset.env_spec.max_episode_steps or 0) if dataset.env_spec else 0,
    )


def read_file(folder: Path, key: str, size: int, i: int) -> Sequence[Episode]:
    """An episode of a data set; `BrokenFile` says what is wrong with it."""
    try:
        return (make_episode(open_dataset(folder), key, size, i),)
    except Exception as error:  # each storage has errors of its own
        raise BrokenFile(f"{folder}: episode {i}: {one_line(error)}; fetch it again") from None


def make_episode(dataset: MinariDataset, key: str, size: int, i: int) -> Episode:
    """Rows of the store's clock."""
    data = dataset[i]
    frames = np.asarray(data.observations[key] if key else data.observations)
    if size or frames.shape[3:] != (3,):
        frames = np.stack([resize_image(frame, size) for frame in frames])
    rows = {"frames": frames}
    for ours, theirs in STEP_ARRAYS.items():
        array = np.asarray(getattr(data, theirs))
        if len(array) != len(frames) - 1:
            raise UserError(f"it has {len(frames)} observations, but {len(array)} {theirs}")
        array = to_action_spec(dataset.action_space).check(array) if ours == "action" else array
        rows[ours] = np.concatenate([array, np.zeros_like(array[:1])])
    with np.errstate(over="ignore"):  # what is infinite in float32 is told below
        rows["reward"] = rows["reward"].astype(np.float32)
    rows["terminated"], rows["truncated"] = rows["terminated"].astype(bool), rows["truncated"].astype(bool)
    if mine := stored_metadata(dataset):
        rows |= {name: np.asarray(data.infos[name]) for name in mine[1]}
    else:
        rows["variables"] = np.zeros((len(frames), 0), np.float32)  # none, which a dream can go on from
    check(rows, make_env_spec(dataset, key, size))
    return rows


def check(rows: Episode, env_spec: EnvSpec) -> None:
    """`UserError` for what would not fit beside other episodes, or spoil what is trained on it."""
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
        raise UserError(f"there is no data set {args.dataset} at {folder.parent}; `minari download` fetches one")
    dataset = open_dataset(folder)
    key = image_key(dataset, args.image)
    files = ReaderArgs(source=folder, out=args.out, num_workers=args.num_workers, seed=args.seed)
    made = {"dataset": dataset.id, "image": key} | ({"size": args.size} if args.size else {})
    fill_store(
        files,
        make_env_spec(dataset, key, args.size),
        range(len(dataset)),
        partial(read_file, folder, key, args.size),
        **made,
    )


def export_store(args: Args) -> None:
    """Write a store to Minari, wholly or not at all."""
    store = Store(args.export)
    missing = [name for name in ("frames", *STEP_ARRAYS) if name not in store.array_names]
    if missing:
        raise UserError(f"{args.export} has no {missing[0]}, and Minari holds steps; export a store of an environment")
    folder = dataset_folder(args.dataset)
    if folder.exists():
        raise UserError(
            f"{args.dataset} exists already, perhaps half, of a killed export; `minari delete` it, or give another id"
        )
    try:
        write_dataset(store, args.dataset)
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    print(f"data: {args.dataset}: {len(store.episode_ends):,} episodes, {store.n_rows:,} frames at {folder.parent}")


def write_dataset(store: Store, dataset: str) -> None:
    import minari

    infos = [name for name in store.array_names if name not in ("frames", *STEP_ARRAYS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no author, and no environment to rank it by
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
    """A store's episodes as Minari takes them, one in memory at a time."""
    from minari.data_collector import EpisodeBuffer

    for i in tqdm(range(len(store.episode_ends)), unit=" episodes", desc=store.env_spec.name):
        rows = store.read_episode(i)
        steps = {theirs: rows[ours][:-1] for ours, theirs in STEP_ARRAYS.items()}
        yield EpisodeBuffer(observations=rows["frames"], **steps, infos={n: rows[n] for n in infos})


def main(args: Args) -> None:
    require_minari()
    if not args.dataset:
        raise UserError("name a data set: --dataset my/doom-v0")
    if args.export:
        export_store(args)
    else:
        import_dataset(args)


if __name__ == "__main__":
    command(main, "collect")
