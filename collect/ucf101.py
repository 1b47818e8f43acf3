"""Read UCF-101: 13,320 videos of 101 classes, 320x240 at 25 frames per second, with three published splits.

    <source>/UCF-101/<Class>/v_<Class>_g<group>_c<clip>.avi
    <source>/ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt

    python collect/ucf101.py --source ucf --out runs/ucf101/data.zarr --size 128

The paper (section 4.5) scales the shorter side to 128 pixels, crops the center, and trains on 64x64 and on 128x128.
Here the shorter side is scaled to `size`, also for 64. Cropping 64x64 from a scaled image of 128 would be a smaller
view. Halving the 128x128 crop would be the same view, only filtered twice.

The published test list is the test split. A fraction `valid` of the training list is for validation. It is chosen by
groups, because the clips of a group show the same scene, and validation would leak. Published results use fold 1. Each
frame is used once, as usual for UCF-101; the few videos with other rates are not resampled.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # run as a file: import from the project's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from collect.files import read_text
from collect.video_reader import Clip, VideoArgs, fill_store_with_videos
from configs import command
from configs.written import Written, recorded
from worldmodel.data.zarr_format import SPLITS
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, FractionBelow1

FPS = 25.0
LISTS, VIDEOS = "ucfTrainTestlist", "UCF-101"
TRAIN, VALID, TEST = range(len(SPLITS))


@dataclass(frozen=True, kw_only=True)
class Args(VideoArgs):
    """Make a store of UCF-101."""

    source: Path = Path()
    """Folder with UCF-101/ and ucfTrainTestlist/ in it."""
    out: Address = Address("runs/ucf101/data.zarr")
    """Store to write; an unfinished one resumes."""
    fold: Literal[1, 2, 3] = 1
    """Number of the published split, 1 to 3."""
    valid: FractionBelow1 = 0.02
    """Fraction of the training groups that become the validation split."""


def read_lines(args: Args, name: str) -> tuple[Path, list[list[str]]]:
    """The words of each line of a list."""
    path = args.source / LISTS / name
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder that contains {VIDEOS}/ and {LISTS}/")
    rows = [words for line in read_text(path).splitlines() if (words := line.split())]
    if not rows:
        raise UserError(f"{path} is empty; download it again")
    return path, rows


def read_classes(args: Args) -> list[str]:
    """The names of the classes; the lists count from 1, labels from 0."""
    path, rows = read_lines(args, "classInd.txt")
    if any(len(row) != 2 or row[0] != str(i) for i, row in enumerate(rows, 1)):
        raise UserError(f"{path} should have lines such as `1 ApplyEyeMakeup`, counted from 1; download it again")
    return [name for _, name in rows]


def read_list(args: Args, kind: str, classes: list[str]) -> list[tuple[str, int]]:
    """The videos of a list, with their labels."""
    path, rows = read_lines(args, f"{kind}list{args.fold:02}.txt")
    found = []
    for name, *number in rows:
        folder = name.partition("/")[0]
        if folder not in classes:
            raise UserError(f"{path}: {name} has a class that is not in classInd.txt; download both again")
        label = classes.index(folder)
        if number and number != [str(label + 1)]:
            raise UserError(f"{path}: {name} has label {number[0]}, but its class is {label + 1}; download it again")
        found.append((name, label))
    return found


def group_of(name: str) -> str:
    """`Class/v_Class_g08_c01.avi` -> `Class/v_Class_g08`."""
    return name.rpartition("_c")[0]


def find_clips(args: Args, classes: list[str]) -> list[Clip]:
    """All videos of the fold: training videos, then test videos."""
    train, test = read_list(args, "train", classes), read_list(args, "test", classes)
    twice = next((name for name, times in Counter(name for name, _ in train + test).items() if times > 1), None)
    if twice:
        where = f"{args.source / LISTS}: {twice}"
        raise UserError(f"{where} is listed twice for fold {args.fold}; download the lists again")
    groups = sorted({group_of(name) for name, _ in train})
    drawn = np.random.default_rng(args.seed).permutation(len(groups))[: math.ceil(args.valid * len(groups))]
    valid = {groups[i] for i in drawn}
    named = [(name, label, VALID if group_of(name) in valid else TRAIN) for name, label in train]
    named += [(name, label, TEST) for name, label in test]
    folder = args.source / VIDEOS
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the folder that contains {VIDEOS}/ and {LISTS}/")
    return [Clip(folder / name, name, {"label": label, "split": split}) for name, label, split in named]


def main(args: Args) -> Written:
    classes = read_classes(args)
    fill_store_with_videos(args, "ucf101", args.fps or FPS, find_clips(args, classes), classes=tuple(classes))
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
