"""Read a folder of videos into a store. This docstring also documents all readers of videos.

    python collect/video.py --source my_videos --out runs/mine/data.zarr --size 64 --labels

Geometry. The shorter side is scaled to `size`, and the center square is kept. Both are one step: the center square of
the source is resampled with Pillow's antialiased bilinear filter, so no side is rounded in between. Non-square pixels
and rotated videos are corrected, as in a video player.

Time. Without `fps` each frame is used once, and the frame rate of the store is that of the first readable video. This
is right for a folder of videos with one rate. With `fps` each video is resampled: frame k is the frame on screen in the
middle of the k-th period of 1 / fps seconds. A video of that rate is not changed. Rounded time stamps and the varying
frame durations of GIFs are handled too.

Decoding. Videos are decoded by `video_decoding`, GIFs by `gif_decoding`. Transparency becomes white. A truncated file
is skipped. A whole video is kept in memory at the small size; `max_frames` limits it.

Split. Videos are split 8:1:1 by the store. Segments of one video stay in one split. If there are so few videos that a
split would be empty, segments are split one by one, and neighboring segments can be in different splits.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: import from the project's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from collect.video_reader import SUFFIXES, Clip, VideoArgs, fill_store_with_videos, fps_of
from configs import command
from configs.written import Written, recorded
from worldmodel.data.zarr_format import SPLITS, draw_splits
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, Count


@dataclass(frozen=True, kw_only=True)
class Args(VideoArgs):
    """Make a store of a folder of videos."""

    source: Path = Path()
    """Folder of videos (avi, mp4, mkv, webm, mov, gif), at any depth."""
    out: Address = Address("runs/videos/data.zarr")
    """Store to write; an unfinished one resumes."""
    labels: bool = False
    """Use the name of a video's folder as its class."""
    length: Count = 0
    """Cut videos into segments of this many frames, and drop the rest; 0 keeps videos whole."""


def find_clips(args: Args) -> tuple[list[Clip], tuple[str, ...]]:
    """The videos of a folder, sorted by name, and their classes."""
    paths = sorted(p for p in args.source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    classes = tuple(sorted({p.parent.name for p in paths})) if args.labels else ()
    loose = next((p.name for p in paths if p.parent == args.source), None)
    if args.labels and loose:
        raise UserError(f"{loose} has no class; with --labels put each video into a folder named as its class")
    clips = []
    for path, split in zip(paths, draw_splits(len(paths), args.seed), strict=True):
        values = {"label": classes.index(path.parent.name)} if args.labels else {}
        if args.length and len(paths) >= min_videos_to_split(args.seed):
            values["split"] = SPLITS.index(split)
        clips.append(Clip(path, str(path.relative_to(args.source)), values))
    return clips, classes


def min_videos_to_split(seed: int) -> int:
    """The smallest number of videos for which no split is empty."""
    return next(n for n in itertools.count(3) if len(set(draw_splits(n, seed))) == len(SPLITS))


def main(args: Args) -> Written:
    clips, classes = find_clips(args)
    if args.length and clips and "split" not in clips[0].values:
        print(f"{len(clips)} videos are too few to split: segments of one video will be in several splits")
    name = args.source.resolve().name
    fps = args.fps or fps_of(clips)
    fill_store_with_videos(args, name, fps, clips, classes=classes, length=args.length)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
