"""Convert between stores and LeRobot datasets, Hugging Face's format of robot data.

    python collect/lerobot.py --source my_dataset --camera top --out runs/arm/data.zarr     # versions 2 and 3
    python collect/lerobot.py --export runs/doom/data.zarr --dataset my_dataset              # version 3

Reading. The dataset is a folder on this disk. `observation.state` becomes the variables. Several cameras are put side
by side. `next.reward` and `next.done` are read if present; `next.done` means that the task ended, unless
`next.truncated` says that time was up. `collect/steps.py` documents the other decisions.

Writing. A store has a row for the last frame of an episode, so its LeRobot episode has one too, with a zero action.
MP4 is slightly lossy; `--pictures png` is lossless. What LeRobot does not have (the environment, labels, splits) is
added, so that a dataset that was written here can be read again with all its values.

pyarrow is an extra: `pip install 'worldmodel[parquet]'`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from collect.action_tables import import_parquet
from collect.files import BrokenFile, names_digest, reason, with_labels
from collect.images import frames_of
from collect.lerobot_export import DONE, EXTRA, OWN_FILE, TERMINATED, TRUNCATED, export_store
from collect.lerobot_files import Dataset, Span, open_dataset, read_camera, read_columns, read_everywhere
from collect.steps import StepArgs, action_spec, fill_with_steps, make_rows, numbered_names
from configs import command
from configs.written import Written
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.settings import Address

STATE, REWARD = "observation.state", "next.reward"


@dataclass(frozen=True, kw_only=True)
class Args(StepArgs):
    """Read a LeRobot dataset, or write one."""

    source: Path = Path()
    """Folder of the dataset, with meta/info.json in it."""
    out: Address = Address("runs/lerobot/data.zarr")
    """Store to write; an unfinished one resumes."""
    camera: tuple[str, ...] = ()
    """Names of the cameras, put side by side; by default the only one."""
    action: str = "action"
    """Feature with the actions."""
    state: tuple[str, ...] = ()
    """Features to keep as variables; by default observation.state, if it is there."""
    export: Address = Address("")
    """Store to write as a dataset; by default a dataset is read instead."""
    dataset: Path = Path()
    """Folder of the dataset to write."""
    pictures: Literal["mp4", "png"] = "mp4"
    """How frames are written; png is exact."""


@dataclass(frozen=True)
class Chosen:
    """The features that are read."""

    cameras: tuple[str, ...]
    action: str
    state: tuple[str, ...]
    others: tuple[str, ...]
    """Reward, flags, label and split, as far as they are there."""


def choose(args: Args, dataset: Dataset, known: EnvSpec | None) -> Chosen:
    """The features that the flags name; `UserError` with those that are there."""
    names = args.camera or tuple(dataset.cameras)
    if len(names) != 1 and not args.camera:
        what = f"the cameras {', '.join(names)}; choose with --camera" if names else "no camera; give another dataset"
        raise UserError(f"{args.source} has {what}")
    cameras: list[str] = []
    for name in names:
        fits = [key for key in dataset.cameras if key == name] or [
            key for key in dataset.cameras if key.endswith(f".{name}")
        ]
        if len(fits) != 1:
            raise UserError(
                f"{args.source} has no camera {name}, only {', '.join(dataset.cameras)}; choose with --camera"
            )
        cameras += fits
    state = args.state or ((STATE,) if STATE in dataset.features else ())
    for feature, flag in ((args.action, "--action"), *((key, "--state") for key in state)):
        if feature not in dataset.features or feature in dataset.cameras:
            others = [key for key in dataset.features if key not in dataset.cameras]
            raise UserError(
                f"{args.source} has no numeric feature {feature}, only {', '.join(others)}; choose with {flag}"
            )
    extra = (*EXTRA, TERMINATED) if known else ()
    there = tuple(key for key in (REWARD, DONE, TRUNCATED, *extra) if key in dataset.features)
    return Chosen(tuple(cameras), args.action, state, there)


def own_spec(root: Path) -> EnvSpec | None:
    """The environment spec of a dataset that was exported here."""
    path = root / OWN_FILE
    if not path.exists():
        return None
    try:
        return EnvSpec.from_json(json.loads(path.read_text()), str(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it, or download it again") from None


def read_span(dataset: Dataset, chosen: Chosen, spec: ActionSpec, size: int, span: Span) -> Sequence[Episode]:
    """An episode; `BrokenFile` if it cannot be read."""
    try:
        return (make_episode(dataset, chosen, spec, size, span),)
    except Exception as error:  # pyarrow, PyAV and Pillow raise errors of many types
        raise BrokenFile(f"{dataset.root}: {span}: {reason(error)}; download it again") from None


def make_episode(dataset: Dataset, chosen: Chosen, spec: ActionSpec, size: int, span: Span) -> Episode:
    """The rows of an episode."""
    stored = [key for key in chosen.cameras if key not in span.videos]
    keys = dict.fromkeys([chosen.action, *chosen.state, *chosen.others, *stored])
    columns = read_columns(dataset, span, list(keys))
    frames = frames_of([read_camera(dataset, span, key, columns, size) for key in chosen.cameras], 0)
    numbers = [columns[key].reshape(span.length, -1) for key in chosen.state]
    done = columns.get(DONE)
    if done is not None and TRUNCATED in columns:
        done = done & ~columns[TRUNCATED]
    variables = np.concatenate(numbers, axis=1) if numbers else None
    rows = make_rows(frames, columns[chosen.action], spec, columns.get(REWARD), done, variables)
    if TERMINATED in columns:  # exported here: a last step may be both terminated and truncated
        rows |= {"terminated": columns[TERMINATED], "truncated": columns[TRUNCATED]}
    return with_labels(rows, **{key: int(columns[key][0]) for key in EXTRA if key in columns})


def variable_names(dataset: Dataset, keys: Sequence[str]) -> tuple[str, ...]:
    """The names of a state's numbers, as far as the dataset has them."""
    names: list[str] = []
    for key in keys:
        n = int(np.prod(dataset.features[key]["shape"]))
        given = dataset.features[key].get("names")
        given = [name for part in given.values() for name in part] if isinstance(given, dict) else given
        names += (
            [str(name) for name in given] if isinstance(given, list) and len(given) == n else numbered_names([(key, n)])
        )
    return tuple(names)


def make_env_spec(args: Args, dataset: Dataset, chosen: Chosen, action: ActionSpec, known: EnvSpec | None) -> EnvSpec:
    """The spec of the exported store, or one of the dataset, with the frames of its first good episode."""
    shape: Any = (args.size or 64, (args.size or 64) * len(chosen.cameras), 3)
    for span in dataset.spans if not args.size else ():
        try:
            shape = read_span(dataset, chosen, action, 0, span)[0]["frames"].shape[1:]
            break
        except BrokenFile:
            continue
    names = variable_names(dataset, chosen.state)
    if not known:
        name = args.source.resolve().name
        return EnvSpec(name=name, frame_shape=shape, action=action, variables=names, fps=dataset.fps)
    same = shape == known.frame_shape
    env = known if same else replace(known, env_id="", env_kwargs={})
    return replace(env, frame_shape=shape, action=action, variables=names)


def import_dataset(args: Args) -> Written:
    dataset = open_dataset(args.source)
    known = own_spec(args.source)
    chosen = choose(args, dataset, known)
    same_action = known and not (args.low or args.high) and args.action == "action"
    arrays = read_everywhere(dataset, args.action)
    action = known.action if known and same_action else action_spec(arrays, args.source, args.low, args.high)
    env_spec = make_env_spec(args, dataset, chosen, action, known)
    how: dict[str, Any] = {
        "cameras": list(chosen.cameras), "state": list(chosen.state), "action": args.action, "size": args.size,
        "files": names_digest(f"{span} {span.length} {span.data}" for span in dataset.spans),
    }  # fmt: skip
    n_episodes = 0 if "split" in chosen.others else len(dataset.spans)
    read = partial(read_span, dataset, chosen, action, args.size)
    return fill_with_steps(args, env_spec, dataset.spans, read, n_episodes, **how)


def main(args: Args) -> Written:
    import_parquet()
    if not args.export:
        return import_dataset(args)
    if args.dataset == Path():
        raise UserError("no dataset was given; name the folder to write, such as --dataset my_dataset")
    return Written(export_store(args.export, args.dataset, args.pictures))


if __name__ == "__main__":
    command(main, "collect")
