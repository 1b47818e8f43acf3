"""Robot pushing of Ebert et al. (2017), the BAIR data set, from the TFRecords that were published, into a store.

    python collect/bair.py --source softmotion30_44k

Each record is an episode of 30 frames of a Sawyer arm, seen by two cameras: `aux1`, which video models are compared
on, and `main`. Row t has frame t, the action taken at it, and where the gripper was. The last frame's action led to
a frame that was not recorded: it drops out, as a store's last row has no action. There is no reward; the end of an
episode is `truncated`, since the arm went on.

Split: test/ is the test set (256 episodes in all). The data has no validation set, so a share of the episodes of
train/ becomes one, drawn by the seed for each file on its own: a file that is skipped moves no other's episodes.

A file with one damaged record is skipped whole: it holds 256 episodes of 43,264, and can be fetched again.

Bounds: the publication names none. An action beyond `--low` and `--high` means a file that is not what it should
be, and is refused. The defaults only keep such nonsense out; the last line says in which range the actions lay, and
a random policy is as wild as the robot was where that range is given instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from collect.files import ReaderArgs, draw_validation, fill_store, names_digest, with_labels
from collect.tfrecord import Feature, broken, examples
from configs import command
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import FractionBelow1

STEPS, FRAME = 30, (64, 64, 3)
VIEWS = ("aux1", "main")
Box4 = tuple[float, float, float, float]
Item = tuple[Path, int, bool]
"""A file, its position among those of its folder, and whether it is of the test set."""


@dataclass(frozen=True, kw_only=True)
class Args(ReaderArgs):
    """Read BAIR robot pushing."""

    source: Path = Path("softmotion30_44k")
    """The folder with train/ and test/."""
    out: Path = Path("runs/bair/data.zarr")
    """The store; one that is not complete goes on."""
    view: Literal["aux1", "main"] = "aux1"
    """The camera whose pictures are the frames."""
    both_views: bool = False
    """Keep the other camera's pictures too, as the array frames_main (or frames_aux1)."""
    valid: FractionBelow1 = 0.02
    """Share of the training episodes that are for validation."""
    low: Box4 = (-10.0, -10.0, -10.0, -10.0)
    """The least that each number of an action may be."""
    high: Box4 = (10.0, 10.0, 10.0, 10.0)
    """The most that each number of an action may be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.less(self.low, self.high).all():
            raise UserError(f"low {self.low} must lie below high {self.high}")


def make_env_spec(args: Args) -> EnvSpec:
    action = ActionSpec(kind="Box", low=args.low, high=args.high)
    return EnvSpec(
        name="bair", frame_shape=FRAME, action=action, variables=("x", "y", "z"), max_episode_steps=STEPS - 1
    )


def list_files(args: Args) -> list[Item]:
    """All files, those of train/ first."""
    return [
        (path, i, folder == "test")
        for folder in ("train", "test")
        for i, path in enumerate(sorted((args.source / folder).glob("*.tfrecord*"), key=first_trajectory))
    ]


def first_trajectory(path: Path) -> tuple[int, str]:
    """Files are named traj_10_to_265.tfrecords: by number, not by letter."""
    number = next((part for part in path.stem.split("_") if part.isdigit()), "0")
    return int(number), path.name


def read_file(args: Args, item: Item) -> Sequence[Episode]:
    """The episodes of a file."""
    path, index, test = item
    episodes = [make_episode(args, path, i, features) for i, features in enumerate(examples(path))]
    split = (
        np.full(len(episodes), 2) if test else draw_validation(len(episodes), args.valid, file_seed(args.seed, index))
    )
    return [with_labels(e, split=int(s)) for e, s in zip(episodes, split, strict=True)]


def file_seed(seed: int, index: int) -> int:
    """A seed of its own for each file."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def make_episode(args: Args, path: Path, i: int, features: dict[str, Feature]) -> Episode:
    """Rows of the store's clock; `BrokenFile` where something is missing or is not what it should be."""
    take = partial(read_feature, path, i, features)
    other = VIEWS[1 - VIEWS.index(args.view)]
    action = np.stack([take(f"{t}/action", (4,)) for t in range(STEPS)])
    try:
        action = make_env_spec(args).action.check(action)
    except UserError as error:
        raise broken(path, f"record {i}: {error}", "fetch it again, or give other bounds if it is sound") from None
    action[-1] = 0
    truncated = np.zeros(STEPS, bool)
    truncated[-2] = True
    rows = {
        "frames": np.stack([take(f"{t}/image_{args.view}/encoded", FRAME) for t in range(STEPS)]),
        "action": action,
        "reward": np.zeros(STEPS, np.float32),
        "terminated": np.zeros(STEPS, bool),
        "truncated": truncated,
        "variables": np.stack([take(f"{t}/endeffector_pos", (3,)) for t in range(STEPS)]),
    }
    if args.both_views:
        rows[f"frames_{other}"] = np.stack([take(f"{t}/image_{other}/encoded", FRAME) for t in range(STEPS)])
    return rows


def read_feature(path: Path, i: int, features: dict[str, Feature], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A feature as an array of a shape: pictures are raw bytes, whatever their name says; numbers are finite."""
    found = features.get(name, [])
    if isinstance(found, list):
        array = np.frombuffer(found[0], np.uint8) if len(found) == 1 else np.zeros(0, np.uint8)
    else:
        array = found
    wanted = np.uint8 if len(shape) == 3 else np.float32
    if not len(found):
        raise broken(path, f"record {i} has no {name}")
    if array.size != np.prod(shape) or array.dtype != wanted:
        what = f"{array.size} values of {array.dtype} instead of {wanted.__name__} {shape}"
        raise broken(path, f"record {i}: {name} has {what}")
    if not np.isfinite(array).all():
        raise broken(path, f"record {i}: {name} is not finite")
    return array.reshape(shape)


def main(args: Args) -> None:
    found = list_files(args)
    files = names_digest(f"{path.name} {test}" for path, _, test in found)
    how: dict[str, Any] = {"view": args.view, "both_views": args.both_views, "valid": args.valid, "files": files}
    fill_store(args, make_env_spec(args), found, partial(read_file, args), **how)
    store = Store(args.out)
    actions = store.read("action", 0, store.n_rows)
    print(f"actions lay between {actions.min(0).tolist()} and {actions.max(0).tolist()}")


if __name__ == "__main__":
    command(main, "collect")
