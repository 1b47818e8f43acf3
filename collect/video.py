"""Read a folder of videos into a store.

This docstring also documents all readers of videos.

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

Actions. With `actions_table` a CSV or parquet file beside each video has a row for each frame; `collect/steps.py`
describes how they are used. A video whose table does not fit is skipped.

Split. Videos are split 8:1:1 by the store. Segments of one video stay in one split. If there are so few videos that a
split would be empty, whole videos are cut by time (see `steps`). With `length`, segments are then split one by one, and
neighboring segments can be in different splits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

if not __package__:  # run as a file: import from the project's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collect.action_tables import choose_columns, read_columns
from collect.episodes import cut_episode
from collect.files import BrokenFile, names_digest, with_labels
from collect.steps import action_spec, fill_with_steps, lacks_split, make_rows, too_few
from collect.video_reader import SUFFIXES, Clip, VideoArgs, decode, fill_store_with_videos, fps_of
from configs import command
from configs.written import Written, recorded
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode
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
    actions_table: Literal["", "csv", "parquet"] = ""
    """Kind of the table beside each video, a row for each frame."""
    actions: tuple[str, ...] = ()
    """Columns of actions; by default all that are numbers."""
    rewards: str = ""
    """Column of the rewards; without it they are 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actions_table and (self.fps or self.frame_stride > 1):
            raise UserError("fps and frame_stride would leave out frames that have an action; leave them out")
        if not self.actions_table and (self.actions or self.rewards):
            raise UserError("actions and rewards are columns of a table; set actions_table too")
        if self.actions_table and self.length == 1:
            raise UserError("length must be 0 or at least 2, not 1, because a step has two frames")


def find_clips(args: Args) -> tuple[list[Clip], tuple[str, ...]]:
    """The videos of a folder, sorted by name, and their classes."""
    paths = sorted(p for p in args.source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    classes = tuple(sorted({p.parent.name for p in paths})) if args.labels else ()
    loose = next((p.name for p in paths if p.parent == args.source), None)
    if args.labels and loose:
        raise UserError(f"{loose} has no class; with --labels put each video into a folder named after its class")
    by_video = args.length and not lacks_split(len(paths), args.seed)
    clips = []
    for path, split in zip(paths, draw_splits(len(paths), args.seed), strict=True):
        values = {"label": classes.index(path.parent.name)} if args.labels else {}
        if by_video:
            values["split"] = SPLITS.index(split)
        clips.append(Clip(path, str(path.relative_to(args.source)), values))
    return clips, classes


def read_acted(args: Args, columns: Sequence[str], spec: ActionSpec, clip: Clip) -> list[Episode]:
    """The episodes of a video and its table: one, or its segments."""
    frames = decode(clip.path, clip.name, args)
    try:
        table = read_columns(table_of(args, clip), [*columns, *filter(None, [args.rewards])])
        if len(frames) == args.max_frames:
            table = table[: len(frames)]
        rewards = table[:, -1] if args.rewards else None
        episode = make_rows(frames, table[:, : len(columns)], spec, rewards)
    except UserError as error:
        raise BrokenFile(f"{clip.name}: {error}") from None
    if len(frames) < args.length:
        raise BrokenFile(f"{clip.name}: it has {len(frames)} frames, fewer than a segment, {args.length}")
    return [with_labels(part, **clip.values) for part in cut_episode(episode, args.length)]


def table_of(args: Args, clip: Clip) -> Path:
    return clip.path.with_suffix(f".{args.actions_table}")


def fill_with_actions(args: Args, name: str, fps: float, clips: Sequence[Clip], classes: tuple[str, ...]) -> Written:
    """Fill a store with videos and the actions of their tables."""
    columns = choose_columns([table_of(args, clip) for clip in clips], args.actions, args.rewards)
    print(f"actions are the columns {', '.join(columns)}")
    tables = (read_columns(table_of(args, clip), columns, skip=True) for clip in clips)
    spec = action_spec(tables, args.source)
    env_spec = EnvSpec(name=name, frame_shape=(args.size, args.size, 3), action=spec, classes=classes, fps=fps)
    files = names_digest(f"{c.name} {c.values}" for c in clips)
    how = {key: getattr(args, key) for key in ("max_frames", "min_frames", "length", "rewards")}
    n_episodes = 0 if args.length else len(clips)  # with 0, none is cut by time
    return fill_with_steps(
        args, env_spec, clips, partial(read_acted, args, columns, spec), n_episodes, args.shortest_part,
        **how, actions=list(columns), files=files,
    )  # fmt: skip


def main(args: Args) -> Written:
    clips, classes = find_clips(args)
    if args.length and clips and "split" not in clips[0].values:
        print(f"{len(clips)} videos are too few to split: segments of one video will be in several splits")
    name = args.source.resolve().name
    fps = args.fps or fps_of(clips)
    if args.actions_table and clips:
        return fill_with_actions(args, name, fps, clips, classes)
    in_time = not args.length and too_few(len(clips), args.seed, "videos", args.shortest_part)
    fill_store_with_videos(args, name, fps, clips, classes=classes, length=args.length, in_time=in_time)
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
