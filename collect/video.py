"""A store of any folder of videos; and how all readers of videos make frames of them.

    python collect/video.py --source my_videos --out runs/mine/data.zarr --size 64 --labels

Geometry. The shorter side is scaled to `size`, then the centre is cut out. Both are one step: the central square of
the source is resampled by Pillow's antialiased bilinear filter, so that no side is rounded on the way. Pixels that are
not square, and videos that are to be turned, are shown as a player shows them.

Time. Without `fps` each frame is taken once, whatever its rate, and the store's clock is that of the first video that
can be read: right for a folder of one rate. With `fps` each video is resampled: frame k is the one on screen in the
middle of the k-th period of 1 / fps seconds, so that a video of that rate stays as it is, and neither rounded time
stamps nor the frames of a GIF, each of which lasts as long as it says, move the clock.

Decoding. Videos are read by `video_decoding`, GIFs by `gif_decoding`; what is transparent becomes white, as on a page.
A torn file is skipped. A video is held in memory whole, at its small size; `max_frames` bounds it.

Split. Whole videos are split 8:1:1 by the store. Pieces of one video stay in one split, unless there are so few
videos that a split would be empty: then the pieces are drawn one by one, and near pieces are in different splits.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the folder above is where `collect` is found
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from collect.video_reader import SUFFIXES, Clip, VideoArgs, fill_store_with_videos, fps_of
from configs import command
from worldmodel.data.zarr_format import SPLITS, draw_splits
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count


@dataclass(frozen=True, kw_only=True)
class Args(VideoArgs):
    """Make a store of a folder of videos."""

    source: Path = Path()
    """Folder of videos (avi, mp4, mkv, webm, mov, gif), with any folders inside."""
    out: Path = Path("runs/videos/data.zarr")
    """The store; one that is not complete goes on."""
    labels: bool = False
    """The folder that a video lies in is its class."""
    length: Count = 0
    """Cut into pieces of so many frames, what is left over dropped; 0 keeps videos whole."""


def find_clips(args: Args) -> tuple[list[Clip], tuple[str, ...]]:
    """The videos of a folder, by name, and their classes."""
    paths = sorted(p for p in args.source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    classes = tuple(sorted({p.parent.name for p in paths})) if args.labels else ()
    loose = next((p.name for p in paths if p.parent == args.source), None)
    if args.labels and loose:
        raise UserError(f"{loose} has no class; with --labels each video lies in a folder of its class")
    clips = []
    for path, split in zip(paths, draw_splits(len(paths), args.seed), strict=True):
        values = {"label": classes.index(path.parent.name)} if args.labels else {}
        if args.length and len(paths) >= min_videos_to_split(args.seed):
            values["split"] = SPLITS.index(split)
        clips.append(Clip(path, str(path.relative_to(args.source)), values))
    return clips, classes


def min_videos_to_split(seed: int) -> int:
    """The number of videos from which on no split is empty."""
    return next(n for n in itertools.count(3) if len(set(draw_splits(n, seed))) == len(SPLITS))


def main(args: Args) -> None:
    clips, classes = find_clips(args)
    if args.length and clips and "split" not in clips[0].values:
        print(f"{len(clips)} videos are too few to split: the pieces of one will be in several splits")
    name = args.source.resolve().name
    fps = args.fps or fps_of(clips)
    fill_store_with_videos(args, name, fps, clips, classes=classes, length=args.length)


if __name__ == "__main__":
    command(main, "collect")
