"""Read BAIR robot pushing (Ebert et al., 2017) from the published TFRecords into a store.

    python collect/bair.py --source softmotion30_44k

Each record is an episode of 30 frames of a Sawyer arm from two cameras: `aux1`, the standard view of video prediction
papers, and `main`. Row t has frame t, the action taken at it, and the gripper position. The action of the last frame is
dropped, because its next frame was not recorded. There is no reward. The last step is `truncated`, since the arm
continued.

Split: test/ is the test set (256 episodes). There is no published validation set, so a random fraction of train/
becomes one. It is chosen per file, so that a skipped file does not change the split of others.

A file with one damaged record is skipped as a whole: it has 256 of 43,264 episodes, and can be fetched again.

Bounds: none were published. A file with an action of a step outside `--low` and `--high` is refused. The default bounds
only exclude corrupt values. The range of the actions is printed at the end; with it as bounds, the store's random
actions have the range of the robot's.
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
from collect.steps import make_rows, print_action_range
from collect.tfrecord import Feature, broken, examples
from configs import command
from configs.written import Written, recorded
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, FractionBelow1

STEPS, FRAME = 30, (64, 64, 3)
VIEWS = ("aux1", "main")
Box4 = tuple[float, float, float, float]
Item = tuple[Path, int, bool]
"""A file, its position in its folder, and whether it belongs to the test set."""


@dataclass(frozen=True, kw_only=True)
class Args(ReaderArgs):
    """Read BAIR robot pushing."""

    source: Path = Path("softmotion30_44k")
    """Folder with train/ and test/ in it."""
    out: Address = Address("runs/bair/data.zarr")
    """Store to write; an unfinished one resumes."""
    view: Literal["aux1", "main"] = "aux1"
    """Camera of the frames."""
    both_views: bool = False
    """Also store the frames of the other camera; their array is frames_main (or frames_aux1)."""
    valid: FractionBelow1 = 0.02
    """Fraction of the training episodes that become the validation split."""
    low: Box4 = (-10.0, -10.0, -10.0, -10.0)
    """Lower bound of each number of an action."""
    high: Box4 = (10.0, 10.0, 10.0, 10.0)
    """Upper bound of each number of an action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.less(self.low, self.high).all():
            raise UserError(f"low must be below high, {self.high}, not {self.low}")


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
    """Sort key of files named like traj_10_to_265.tfrecords: by number, not by letter."""
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
    """A different seed for each file."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def make_episode(args: Args, path: Path, i: int, features: dict[str, Feature]) -> Episode:
    """The rows of an episode; `BrokenFile` if a feature is missing or invalid."""
    take = partial(read_feature, path, i, features)
    other = VIEWS[1 - VIEWS.index(args.view)]
    actions, frames, positions = (
        np.stack([take(f"{t}/{name}", shape) for t in range(STEPS)])
        for name, shape in (("action", (4,)), (f"image_{args.view}/encoded", FRAME), ("endeffector_pos", (3,)))
    )
    try:
        rows = make_rows(frames, actions, make_env_spec(args).action, variables=positions)
    except UserError as error:
        raise broken(
            path, f"record {i}: {error}", "download it again, or set other bounds if the file is fine"
        ) from None
    if args.both_views:
        rows[f"frames_{other}"] = np.stack([take(f"{t}/image_{other}/encoded", FRAME) for t in range(STEPS)])
    return rows


def read_feature(path: Path, i: int, features: dict[str, Feature], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A feature as an array of a shape. Images are raw bytes, although their name says "encoded"."""
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


def main(args: Args) -> Written:
    found = list_files(args)
    files = names_digest(f"{path.name} {test}" for path, _, test in found)
    how: dict[str, Any] = {"view": args.view, "both_views": args.both_views, "valid": args.valid, "files": files}
    fill_store(args, make_env_spec(args), found, partial(read_file, args), **how)
    print_action_range(args.out)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
