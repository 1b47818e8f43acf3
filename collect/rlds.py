"""Read RLDS data sets, such as those of Open X-Embodiment, from TFRecords into a store.

    python collect/rlds.py --source bridge/1.0.0 --image image_0 --action steps/action --state steps/observation/state

A record is an episode. Its features have the values of all steps, one after another: encoded pictures such as
`steps/observation/image`, numbers such as `steps/action`, `steps/reward` and `steps/is_terminal`. How many numbers a
step has follows from the number of pictures, so `features.json` is not needed. If a name is wrong, the error lists the
features that exist. `--action A B C` joins an action that is stored in several features.

Split. File names such as `bridge-train.tfrecord-00000-of-01024` give the published split. If it has no validation, a
tenth of the training episodes becomes validation. If no files are for training, or all files are, the store draws its
own split. A damaged record is skipped; if its length is damaged, so is the rest of its file.
`collect/steps.py` documents the other decisions.

Bounds of actions need a first pass over the data, unless `--low` and `--high` are given.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from collect.files import BrokenFile, names_digest, reason, with_labels
from collect.images import frames_of
from collect.steps import StepArgs, action_spec, fill_with_steps, make_rows, numbered_names
from collect.tfrecord import Feature, Place, broken, example, places, record_at, table
from configs import command
from configs.written import Written
from envs.images import resize_image
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AboveZero, Address

OBSERVATION, REWARD, TERMINAL = "steps/observation/", "steps/reward", "steps/is_terminal"
ENCODED = (b"\xff\xd8\xff", b"\x89PNG")
"""First bytes of a JPEG and a PNG."""
SPLIT_NAMES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
TRAIN, VALID = 0, 1
VALID_EVERY = 10
"""Every so many training episodes, one becomes validation if the published split has none."""


@dataclass(frozen=True, kw_only=True)
class Args(StepArgs):
    """Read RLDS data sets from TFRecords."""

    source: Path = Path()
    """Folder with the TFRecords of one data set."""
    out: Address = Address("runs/rlds/data.zarr")
    """Store to write; an unfinished one resumes."""
    image: tuple[str, ...] = ()
    """Features with pictures, put side by side; by default the only one."""
    action: tuple[str, ...] = ("steps/action",)
    """Features that make up the action."""
    state: tuple[str, ...] = ()
    """Features to keep as variables, such as steps/observation/state."""
    fps: AboveZero = 10.0
    """Frames per second."""


@dataclass(frozen=True)
class Record:
    """An episode: its file, its place there, and its published split, or why it cannot be read."""

    path: Path
    place: Place
    split: int | None = None
    why: str = ""

    def __str__(self) -> str:
        return f"{self.path}: record {self.place.number}"


def list_records(args: Args) -> list[Record]:
    """The records of all files."""
    files = sorted(path for path in args.source.rglob("*.tfrecord*") if path.is_file())
    named = {path: re.search(r"-(\w+)\.tfrecord", path.name) for path in files}
    splits = {path: SPLIT_NAMES.get(found[1]) if found else None for path, found in named.items()}
    published = None not in splits.values() and len(set(splits.values())) > 1 and TRAIN in splits.values()
    found = []
    for path in files:
        split = splits[path] if published else None
        try:
            for place in places(path):
                found.append(Record(path, place, split))
            if not path.stat().st_size:
                raise broken(path, "it is empty")
        except BrokenFile as error:
            found.append(Record(path, Place(0, 0, 0), split, str(error)))
        except OSError as error:
            found.append(Record(path, Place(0, 0, 0), split, f"{path}: {error.strerror}; repair it"))
    return found if not published or VALID in splits.values() else with_validation(found)


def with_validation(records: list[Record]) -> list[Record]:
    """The records with every tenth for training moved to validation, and with the last one if they are few."""
    train = [i for i, record in enumerate(records) if record.split == TRAIN and not record.why]
    moved = set(train[VALID_EVERY - 1 :: VALID_EVERY] or train[1:][-1:])
    how = f"{len(moved)} of its {len(train)} training episodes are used for it" if moved else "it needs two episodes"
    print(f"the published split has no validation; {how}")
    return [replace(record, split=VALID) if i in moved else record for i, record in enumerate(records)]


def features_of(record: Record) -> dict[str, Feature]:
    """The features of an episode; `BrokenFile` if it is damaged."""
    if record.why:
        raise BrokenFile(record.why)
    try:
        return example(record_at(record.path, record.place))
    except (OSError, ValueError, IndexError) as error:
        raise BrokenFile(f"{record} is not an Example ({reason(error)}); download it again") from None


def image_features(args: Args, features: dict[str, Feature]) -> list[str]:
    """The names of the pictures: those of the flag, or the only one."""
    known = [name for name, values in features.items() if isinstance(values, list) and is_encoded(values)]
    if not args.image and len(known) == 1:
        return known
    chosen = [name if name in known else f"{OBSERVATION}{name}" for name in args.image]
    if not chosen or not set(chosen) <= set(known):
        what = (
            f"pictures in {', '.join(known)}; choose with --image" if known else "no JPEG or PNG; give another data set"
        )
        raise UserError(f"{args.source} has {what}")
    return chosen


def is_encoded(values: list[bytes]) -> bool:
    return bool(values) and values[0].startswith(ENCODED)


def check_names(args: Args, features: dict[str, Feature]) -> None:
    """`UserError` if a feature that is asked for is not there."""
    image_features(args, features)
    numbers = sorted(name for name, values in features.items() if not isinstance(values, list))
    for flag, names in (("action", args.action), ("state", args.state)):
        for name in names:
            if name not in numbers:
                raise UserError(
                    f"{args.source} has no numeric feature {name}, only {', '.join(numbers)}; choose with --{flag}"
                )


def joined(features: dict[str, Feature], names: Sequence[str], rows: int) -> np.ndarray:
    """Features side by side, (rows, n)."""
    return np.concatenate([table(features, name, rows) for name in names], axis=1)


def scan(args: Args, records: Sequence[Record]) -> Iterator[np.ndarray]:
    """The actions of all episodes, or of the first one if the bounds are given."""
    wrong: list[UserError] = []
    some = False
    for record in records:
        try:
            features = features_of(record)
            check_names(args, features)
            actions = joined(features, args.action, len(features[image_features(args, features)[0]]))
        except BrokenFile:
            continue
        except UserError as error:
            wrong.append(error)
            continue
        except ValueError:
            continue
        some = True
        yield actions
        if args.low and args.high:
            return
    if wrong and not some:
        raise wrong[0]


def read_record(args: Args, spec: ActionSpec, record: Record) -> Sequence[Episode]:
    """An episode; `BrokenFile` if it cannot be read."""
    features = features_of(record)
    try:
        check_names(args, features)
        rows = make_episode(args, spec, features)
    except Exception as error:  # Pillow raises errors of many types
        raise BrokenFile(f"{record}: {reason(error)}; download it again") from None
    return (rows if record.split is None else with_labels(rows, split=record.split),)


def make_episode(args: Args, spec: ActionSpec, features: dict[str, Feature]) -> Episode:
    """The rows of an episode."""
    cameras = [[picture(data, args.size) for data in features[name]] for name in image_features(args, features)]
    n = len(cameras[0])
    if any(len(camera) != n for camera in cameras):
        raise UserError(f"its cameras have {', '.join(str(len(camera)) for camera in cameras)} pictures")
    frames = frames_of([np.stack(camera) for camera in cameras], 0)
    reward, terminal = (table(features, name, n)[:, 0] if name in features else None for name in (REWARD, TERMINAL))
    variables = joined(features, args.state, n) if args.state else None
    return make_rows(frames, joined(features, args.action, n), spec, reward, terminal, variables)


def picture(data: Any, size: int) -> np.ndarray:
    """The pixels of an encoded picture."""
    return resize_image(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), size)


def make_env_spec(args: Args, spec: ActionSpec, records: Sequence[Record]) -> EnvSpec:
    """The spec of the data, with shapes from the first episode that can be read."""
    name = args.source.resolve().name
    for record in records:
        try:
            (first,) = read_record(args, spec, record)
        except BrokenFile:
            continue
        features, n = features_of(record), len(first["frames"])
        widths = [(key, table(features, key, n).shape[1]) for key in args.state]
        names = numbered_names(widths)
        shape: Any = first["frames"].shape[1:]
        return EnvSpec(name=name, frame_shape=shape, action=spec, variables=names, fps=args.fps)
    return EnvSpec(name=name, action=spec, fps=args.fps)


def main(args: Args) -> Written:
    records = list_records(args)
    good = [record for record in records if not record.why]
    spec = action_spec(scan(args, good), args.source, args.low, args.high) if good else ActionSpec(kind="Box")
    how: dict[str, Any] = {key: list(getattr(args, key)) for key in ("image", "action", "state")}
    how["files"] = names_digest(f"{r.path.relative_to(args.source)} {r.place} {r.split}" for r in records)
    n_episodes = 0 if any(record.split is not None for record in records) else len(good)
    read = partial(read_record, args, spec)
    return fill_with_steps(args, make_env_spec(args, spec, records), records, read, n_episodes, **how)


if __name__ == "__main__":
    command(main, "collect")
